"""Aligned face crops to embeddings, through a recognition network in an ONNX file of the user's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from retinastream.engines.cpu import cpu_count
from retinastream.engines.openvino_core import openvino_core
from retinastream.errors import MissingPackageError, ModelError, UsageError
from retinastream.kernels.align import ARCFACE_SIZE
from retinastream.models.onnx_graph import FLOAT, OnnxGraph, Tensor, file_sha256, read_graph
from retinastream.models.zoo import cached_path
from retinastream.models.zoo_entries import zoo

Float32 = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Normalisation = Literal["arcface", "imagenet", "none"]
Forward = Callable[[Float32], npt.NDArray[Any]]

NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)
RUNTIMES = ("auto", "openvino", "onnxruntime")
# (mean, scale) per channel R, G, B of values 0..255. "arcface" is (x - 127.5) / 127.5; networks that were trained with
# a divisor of 128 see the same picture to 0.4 %.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "arcface": ((127.5,) * 3, (127.5,) * 3),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "none": ((0.0,) * 3, (1.0,) * 3),
}
_FREE_BATCH = 32
_WANTED = f"expected one float32 input (batch, 3, {ARCFACE_SIZE}, {ARCFACE_SIZE}) or with the channels last"


class FaceEmbedder:
    """Turns aligned crops into unit vectors whose dot product says how alike two faces are.

    ``model`` is an .onnx file, or a zoo name of an embedder that was pulled: one float32 input (batch, 3, 112, 112) or
    (batch, 112, 112, 3) in RGB, and one output with a row of numbers per face; the batch may be free or fixed.
    ``normalise`` is what the network was trained with: "arcface" (x - 127.5) / 127.5, "imagenet" (x / 255, less the
    ImageNet mean, by its deviation), or "none" where the file does it itself. ``flip`` adds the embedding of the
    mirrored crop before the length is taken out. ``runtime`` is "auto" (OpenVINO where installed), "openvino" or
    "onnxruntime"; ``threads`` 0 means all processors.

    ``dimension`` is the length of an embedding. Raises UsageError for values that are not allowed, ModelError for files
    that are no such network, MissingPackageError for a runtime that is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        normalise: str = "arcface",
        flip: bool = False,
        runtime: str = "auto",
        threads: int = 0,
    ) -> None:
        for name, value, allowed in (("normalise", normalise, NORMALISATIONS), ("runtime", runtime, RUNTIMES)):
            if value not in allowed:
                raise UsageError(f"{name} {value!r} is not known; allowed are {', '.join(allowed)}")
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise UsageError(f"threads was given as {threads!r}; expected a whole number, 0 or more")
        self.path = find_embedder(model)
        self.normalise, self.flip = normalise, flip
        graph = read_graph(self.path)
        image = _image_input(self.path, graph)
        _check_output(self.path, graph)
        assert image.shape is not None
        self._channels_last = image.shape[1] != 3
        self._batch, self._fixed = image.shape[0] or _FREE_BATCH, image.shape[0] is not None
        self.sha256 = file_sha256(self.path, external=graph.external)
        self.runtime = _choose(runtime)
        self._forward: Forward = _LOADERS[self.runtime](self.path, image, threads or cpu_count())
        self.dimension = self._probe()

    def __call__(self, crops: Pixels) -> Float32:
        """Embed crops (N, 112, 112, 3) uint8 in BGR order: (N, dimension) float32, each row of length 1.

        Raises UsageError for other crops, and ModelError where the network returns numbers that are not finite or all
        zero for a crop.
        """
        if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (*[ARCFACE_SIZE] * 2, 3):
            given = f"{crops.dtype} {crops.shape}" if isinstance(crops, np.ndarray) else type(crops).__name__
            raise UsageError(f"crops were given as {given}; expected uint8 (N, {ARCFACE_SIZE}, {ARCFACE_SIZE}, 3), BGR")
        if not len(crops):
            return np.zeros((0, self.dimension), np.float32)
        return np.concatenate([self._unit(crops[i : i + self._batch]) for i in range(0, len(crops), self._batch)])

    def _unit(self, crops: Pixels) -> Float32:
        raw = self._raw(crops)
        if self.flip:
            raw = raw + self._raw(crops[:, :, ::-1])
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        bad = int(np.count_nonzero(~(np.isfinite(lengths) & (lengths > 0))))
        if bad:
            raise ModelError(
                f"{self.path}: {bad} of {len(crops)} embeddings are not finite or all zero; check that the file is a "
                f"face recognition network and that normalise={self.normalise!r} is what it was trained with"
            )
        return np.asarray(raw / lengths, np.float32)

    def _raw(self, crops: Pixels) -> npt.NDArray[np.float64]:
        mean, scale = (np.array(v, np.float32) for v in _STATISTICS[self.normalise])
        values = (crops[..., ::-1].astype(np.float32) - mean) / scale
        if not self._channels_last:
            values = values.transpose(0, 3, 1, 2)
        missing = self._batch - len(values) if self._fixed else 0
        if missing:
            values = np.concatenate([values, np.zeros((missing, *values.shape[1:]), np.float32)])
        rows = np.asarray(self._forward(np.ascontiguousarray(values)), np.float64)
        if rows.shape[:1] != values.shape[:1] or rows.size < 2 * len(rows):
            raise ModelError(
                f"{self.path} returns the shape {rows.shape} for {len(values)} faces; expected one row of at least two "
                "numbers per face: give a face recognition network (ArcFace or alike)"
            )
        return rows.reshape(len(rows), -1)[: len(crops)]

    def _probe(self) -> int:
        """Run it once, so that a file that loads but cannot run is refused before any picture is read.

        With two faces where the batch is free: some files declare that and hold a fixed size inside.
        """
        faces = 1 if self._fixed else 2
        return int(self._raw(np.zeros((faces, ARCFACE_SIZE, ARCFACE_SIZE, 3), np.uint8)).shape[1])


def find_embedder(model: str | Path) -> Path:
    """Return the file that ``model`` means: a path, or the zoo name of an embedder; raises ModelError for others."""
    entry = zoo().get(str(model))
    if entry is None:
        return Path(model).expanduser()
    if entry.kind != "embedder":
        names = ", ".join(e.name for e in zoo().values() if e.kind == "embedder")
        raise ModelError(f"{entry.name} finds faces and does not tell them apart; embedders are {names}, or a file")
    path = cached_path(entry.name)
    how = f"run `retinastream model pull {entry.name}`" if entry.url else entry.manual
    if not path.is_file():
        raise ModelError(
            f"the model {entry.name} is not on this machine yet (looked in {path.parent}). To get it: {how}"
        )
    if file_sha256(path) != entry.sha256:
        raise ModelError(f"{path} is not the file that {entry.name} names (its sha256 differs). To replace it: {how}")
    return path


def _image_input(path: Path, graph: OnnxGraph) -> Tensor:
    given = "; ".join(map(str, graph.inputs)) or "none"
    if len(graph.inputs) != 1:
        raise ModelError(f"{path} has {len(graph.inputs)} inputs ({given}); {_WANTED}")
    image = graph.inputs[0]
    if image.element_type != FLOAT:
        raise ModelError(f"{path} has the input {given}; {_WANTED}: keep the input float32 when converting the model")
    size = ARCFACE_SIZE
    layouts = ((3, size, size), (size, size, 3))
    if image.shape is None or len(image.shape) != 4 or not any(_fits(image.shape[1:], layout) for layout in layouts):
        raise ModelError(f"{path} has the input {given}; {_WANTED}, as the networks of the ArcFace family have")
    missing = [name for name in graph.external if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} keeps its weights in {missing[0]!r}, which is not beside it; copy it to {path.parent}"
        )
    return image


def _fits(shape: tuple[int | None, ...], layout: tuple[int, ...]) -> bool:
    """Whether free sizes can take this layout; the channels must be declared, or the layout would be a guess."""
    agrees = all(given in (None, wanted) for given, wanted in zip(shape, layout, strict=True))
    return agrees and shape[layout.index(3)] == 3


def _check_output(path: Path, graph: OnnxGraph) -> None:
    given = "; ".join(map(str, graph.outputs))
    if len(graph.outputs) != 1:
        raise ModelError(
            f"{path} has {len(graph.outputs)} outputs ({given}); expected one, (batch, numbers): give a face "
            "recognition network, not a detector"
        )
    shape = graph.outputs[0].shape
    if shape is not None and (len(shape) < 2 or any(d not in (1, None) for d in shape[2:]) or shape[1] == 1):
        raise ModelError(f"{path} has the output {given}; expected (batch, numbers), a row of numbers per face")


def _choose(runtime: str) -> str:
    if runtime != "auto":
        return runtime
    return "openvino" if importlib.util.find_spec("openvino") is not None else "onnxruntime"


def _load_openvino(path: Path, image: Tensor, threads: int) -> Forward:
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingPackageError("the runtime openvino is not installed: pip install openvino") from error
    # Left to itself the plugin reduces precision on CPUs with AMX, and a measure is not to depend on the machine.
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    assert image.shape is not None
    try:
        core = openvino_core(ov)
        network = core.read_model(str(path))
        network.reshape([-1 if size is None else size for size in (image.shape[0], *_spatial(image))])
        request = core.compile_model(network, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot load this model: {_line(error, -1)}") from error

    def forward(values: Float32) -> npt.NDArray[Any]:
        try:
            request.infer([ov.Tensor(values, shared_memory=True)])
        except RuntimeError as error:
            raise ModelError(f"{path}: OpenVINO cannot run this model: {_line(error, -1)}") from error
        return np.array(request.get_output_tensor().data)

    return forward


def _load_onnxruntime(path: Path, image: Tensor, threads: int) -> Forward:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPackageError(
            "the runtime onnxruntime is not installed: pip install 'retinastream[onnxruntime]'"
        ) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen unrelated types here
        raise ModelError(f"{path}: ONNX Runtime cannot load this model: {_line(error, 0)}") from error

    def forward(values: Float32) -> npt.NDArray[Any]:
        try:
            return np.asarray(session.run(None, {image.name: values})[0])
        except Exception as error:  # as above
            raise ModelError(f"{path}: ONNX Runtime cannot run this model: {_line(error, 0)}") from error

    return forward


_LOADERS: dict[str, Callable[[Path, Tensor, int], Forward]] = {
    "openvino": _load_openvino,
    "onnxruntime": _load_onnxruntime,
}


def _spatial(image: Tensor) -> tuple[int, int, int]:
    assert image.shape is not None
    return (3, ARCFACE_SIZE, ARCFACE_SIZE) if image.shape[1] == 3 else (ARCFACE_SIZE, ARCFACE_SIZE, 3)


def _line(error: Exception, which: int) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[which] if lines else type(error).__name__
