"""Small graphs for the tests of precision: written by hand, so that every node is known."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FUSED_STRIDES = (8, 16, 32)


class Graph:
    """Collects nodes and weights; ``model`` makes the ONNX model of it."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def weight(self, name, values):
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def conv(self, source, name, inside, outside, size=1, *, stride=1, group=1, values=None):
        if values is None:
            values = self.rng.normal(0, (inside / group * size * size) ** -0.5, (outside, inside // group, size, size))
        weight = self.weight(f"{name}.weight", values.astype(np.float32))
        bias = self.weight(f"{name}.bias", self.rng.normal(0, 0.1, outside).astype(np.float32))
        pads = [size // 2] * 4
        shape = {"kernel_shape": [size, size], "strides": [stride, stride], "pads": pads, "group": group}
        return self.node("Conv", [source, weight, bias], name, **shape)

    def model(self, outputs, *, inputs=(("images", ("b", 3, "h", "w")),), opset=17, ir=8, elem=TensorProto.FLOAT):
        declared = [helper.make_tensor_value_info(name, elem, list(shape)) for name, shape in inputs]
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "graph", declared, given, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def residual(seed=0):
    """stem -> [two convolutions] + identity -> [one convolution] + shortcut convolution -> head, all with ReLU."""
    g = Graph(seed)
    stem = g.node("Relu", [g.conv("images", "stem", 3, 8, 3, stride=2)], "stem_relu")
    a = g.node("Relu", [g.conv(stem, "a", 8, 8, 3)], "a_relu")
    one = g.node("Relu", [g.node("Add", [g.conv(a, "b", 8, 8, 3), stem], "add_one")], "one")
    wide, short = g.conv(one, "wide", 8, 16, 3, stride=2), g.conv(one, "short", 8, 16, 1, stride=2)
    two = g.node("Relu", [g.node("Add", [wide, short], "add_two")], "two")
    depth = g.node("LeakyRelu", [g.conv(two, "depth", 16, 16, 3, group=16)], "depth_relu", alpha=0.1)
    g.conv(depth, "head", 16, 4, 1)
    return g.model([("head", ["b", 4, "r", "c"])])


def detector(seed=0, *, changes=None):
    """A network that reads as a fused detector: stem, one convolution per level, one head per level."""
    g = Graph(seed)
    values = changes or {}
    level = g.node("Relu", [g.conv("images", "stem", 3, 8, 3, stride=4, values=values.get("stem"))], "stem_relu")
    outputs = []
    for stride in FUSED_STRIDES:
        level = g.node("Relu", [g.conv(level, f"level_{stride}", 8, 8, 3, stride=2)], f"level_{stride}_relu")
        g.conv(level, f"head_{stride}", 8, 32, 1, values=values.get(f"head_{stride}"))
        outputs.append((f"head_{stride}", ["b", 32, f"r{stride}", f"c{stride}"]))
    return g.model(outputs)


def pictures(count=2, height=64, width=96, seed=0):
    """Network input like that of photographs: smooth, within the range of a mean-subtracted picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-110, 140, (count, 1, 3, height // 8, width // 8))
    return [np.ascontiguousarray(p.repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)) for p in coarse]


def run(model, image):
    """Outputs of a model, a path or a proto, by name."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model) if not hasattr(model, "SerializeToString") else model.SerializeToString())
    wanted = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image.astype(wanted)}), strict=True))
