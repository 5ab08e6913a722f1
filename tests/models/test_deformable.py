"""Deformable convolution: equal to a loop over pixels and taps, in torch and in two runtimes."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from retinastream.engines.openvino_core import openvino_core  # noqa: E402
from retinastream.models.architectures import create_network  # noqa: E402
from retinastream.models.network_deformable import DeformableConvolution, deform_convolution  # noqa: E402
from retinastream.models.network_paper import PaperRetinaFace  # noqa: E402
from retinastream.models.spec_registry import SPECS  # noqa: E402

LIGHT_PAPER = "paper-mobilenetv1-x0.25"


def value_at(plane, y, x):
    """Bilinear value of a (H, W) plane at a fractional place; whatever lies outside is 0."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return total


def convolve_by_loops(x, offsets, weight, padding):
    batch, channels, height, width = x.shape
    outputs, _, kernel, _ = weight.shape
    result = np.zeros((batch, outputs, height, width))
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                for tap in range(kernel * kernel):
                    dy, dx = offsets[b, 2 * tap : 2 * tap + 2, row, column]
                    y, x_ = row - padding + tap // kernel + dy, column - padding + tap % kernel + dx
                    for c in range(channels):
                        value = value_at(x[b, c], y, x_)
                        result[b, :, row, column] += weight[:, c, tap // kernel, tap % kernel] * value
    return result


@pytest.mark.parametrize(("kernel", "height", "width"), [(3, 5, 7), (3, 1, 4), (1, 4, 3), (5, 6, 6)])
def test_every_pixel_is_that_of_a_loop_over_its_taps(kernel, height, width):
    rng = np.random.default_rng(kernel * 100 + height)
    x = rng.normal(size=(2, 3, height, width))
    # Up to three pixels: many taps of such a small map fall outside, or between the edge and the outside.
    offsets = rng.normal(0, 1.5, (2, 2 * kernel * kernel, height, width))
    weight = rng.normal(size=(4, 3, kernel, kernel))
    found = deform_convolution(*map(torch.from_numpy, (x, offsets, weight)), padding=kernel // 2)
    np.testing.assert_allclose(found.numpy(), convolve_by_loops(x, offsets, weight, kernel // 2), atol=1e-12)


def test_without_offsets_it_is_the_ordinary_convolution():
    layer = DeformableConvolution(6, 5)
    x = torch.randn(2, 6, 9, 4, generator=torch.Generator().manual_seed(0))
    ordinary = torch.nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), ordinary, atol=1e-5, rtol=1e-5)
    layer.offsets.bias.data[1] = 1.0
    assert not torch.allclose(layer(x), ordinary, atol=1e-2)


def test_gradients_are_those_of_finite_differences():
    draw = torch.Generator().manual_seed(4)

    def values(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, weight = values(1, 2, 4, 3).requires_grad_(), values(2, 2, 3, 3).requires_grad_()
    # Bilinear interpolation has a kink at whole pixels, where a difference says nothing.
    offsets = (torch.round(values(1, 18, 4, 3)) + 0.3 + 0.1 * values(1, 18, 4, 3).tanh()).requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: deform_convolution(*inputs, padding=1), (x, offsets, weight))


def test_a_fresh_deformable_network_computes_what_the_plain_one_does():
    plain = PaperRetinaFace(LIGHT_PAPER, seed=3).eval()
    moving = PaperRetinaFace(LIGHT_PAPER, deformable=True, seed=9).eval()
    report = moving.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    # Three merges of the pyramid, and five convolutions in each of five context modules.
    assert len(report.missing_keys) == 2 * (3 + 5 * 5)
    assert all(".offsets." in key for key in report.missing_keys)
    images = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, theirs in zip(moving(images), plain(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def moved(network):
    """Give the offsets of a network random weights, of about a pixel."""
    draw = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, DeformableConvolution):
            torch.nn.init.normal_(module.offsets.weight, 0.0, 0.02, generator=draw)
            torch.nn.init.normal_(module.offsets.bias, 0.0, 1.0, generator=draw)
    return network.eval()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_exported_deformable_network_agrees_with_torch_at_any_size(runtime, tmp_path):
    pytest.importorskip("onnx", reason="the export extra is not installed")
    engine = pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    from retinastream.models.export import export_network

    network = moved(create_network(LIGHT_PAPER, deformable=True, seed=2))
    path = export_network(network, SPECS["retinaface-paper"], tmp_path / "net.onnx")
    if runtime == "onnxruntime":
        session = engine.InferenceSession(path, providers=["CPUExecutionProvider"])
    else:
        session = openvino_core(engine).compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, height, width in ((1, 64, 128), (2, 96, 64)):
        images = np.random.default_rng(6).normal(0, 1, (batch, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(images))
        if runtime == "onnxruntime":
            outputs = session.run([f"head_{s}" for s in network.strides], {"images": images})
        else:
            found = session({"images": images})
            outputs = [found[f"head_{s}"] for s in network.strides]
        for ours, theirs in zip(expected, outputs, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4 * float(ours.abs().max()))


def test_a_deformable_checkpoint_is_recognised_by_its_tensors(tmp_path):
    from retinastream.models.checkpoints import load_checkpoint

    original = moved(create_network(LIGHT_PAPER, deformable=True, seed=2))
    torch.save(original.state_dict(), tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth", spec=SPECS["retinaface-paper"])
    assert loaded.architecture == LIGHT_PAPER
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(original(images), loaded.network(images), strict=True))


def test_training_moves_the_taps():
    network = create_network(LIGHT_PAPER, deformable=True).train()
    sum(m.square().mean() for m in network(torch.randn(2, 3, 64, 64))).backward()
    layers = [m for m in network.modules() if isinstance(m, DeformableConvolution)]
    assert all(float(layer.offsets.weight.grad.abs().sum()) > 0 for layer in layers)
