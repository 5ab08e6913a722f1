"""From an ONNX file to TensorRT's network, with everything that the parser has to say where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retinastream.engines.tensorrt.log import RING, process_logger
from retinastream.engines.tensorrt.messages import failure_text
from retinastream.errors import EngineError, ModelError
from retinastream.models.onnx_graph import read_graph

if TYPE_CHECKING:
    import tensorrt as trt


def check_external_data(path: Path) -> None:
    """Refuse a model whose weights lie in another file that is not there, with ModelError."""
    missing = [name for name in read_graph(path).external if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} keeps its weights in {missing[0]!r}, which is not beside it; copy that file to {path.parent}"
        )


def parse_network(builder: trt.Builder, path: Path) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    """Read the model at ``path``; the parser owns the weights and must live as long as the network.

    ModelError, with the node and what is wrong with it, for a model that TensorRT does not take.
    """
    import tensorrt as trt

    mark = RING.mark()
    network: trt.INetworkDefinition | None = builder.create_network(_network_flags())
    if network is None:
        raise EngineError(failure_text("TensorRT does not create a network", RING.since(mark)))
    parser = trt.OnnxParser(network, process_logger())
    if not parser.parse_from_file(str(path)):
        errors = [_parser_error(parser.get_error(number)) for number in range(parser.num_errors)]
        nothing = [] if errors else ["no error was reported, which it does for files that are missing or not ONNX"]
        lines = [*RING.complaints(mark), *errors, *nothing]
        raise ModelError(failure_text(f"{path}: TensorRT cannot read this model", lines))
    return network, parser


def _network_flags() -> int:
    """Types come from the graph: to be asked for in TensorRT 10, the only way in 11, where asking is deprecated."""
    import tensorrt as trt

    flags = trt.NetworkDefinitionCreationFlag
    # EXPLICIT_BATCH went together with weak typing, so its absence says that there is nothing to ask for.
    if not hasattr(flags, "EXPLICIT_BATCH"):
        return 0
    return 1 << int(flags.STRONGLY_TYPED)


def _parser_error(error: trt.ParserError) -> str:
    """Write an error of the parser on one line, with all that it knows."""
    where = f"{error.file()}:{error.line()} in {error.func()}"
    functions = error.local_function_stack()
    within = f" within {' > '.join(functions)}" if functions else ""
    operator = error.node_operator()
    node = f"node {error.node()} {error.node_name()!r} ({operator}){within}: " if operator else ""
    return f"{node}{error.desc()} [{error.code()}, {where}]"
