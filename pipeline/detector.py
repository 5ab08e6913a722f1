"""The one thing a library user needs: pictures in, faces out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from retinastream.engines.engine import EngineInfo
from retinastream.engines.select import choose_device, create_engine
from retinastream.errors import UsageError
from retinastream.kernels.sizing import SizePolicy
from retinastream.models.onnx_file import OnnxModel
from retinastream.models.spec import DetectorSpec
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.backend import Backend, DetectionRules, Sizing, check_range
from retinastream.pipeline.batches import in_batches
from retinastream.pipeline.cpu_backend import CpuBackend
from retinastream.pipeline.model_fit import check_batch, choose_size
from retinastream.pipeline.stages import Pipeline, Stage
from retinastream.types import Faces, Frame

if TYPE_CHECKING:
    from retinastream.engines.device_engine import DeviceEngine
    from retinastream.pipeline.device_faces import DeviceFaces


class Detector:
    """Finds faces and their five landmarks in pictures and videos.

    ``model`` is a name of the model zoo, or a path to an .onnx file or (with the extra ``export``) a .pth checkpoint.
    ``threshold`` is the lowest score returned, ``iou`` the overlap above which the weaker of two boxes is dropped.
    ``size`` is "native", "fit:1280", "short:800,max:1200", "pyramid" or "auto": native on a GPU, fit:1280 on a CPU,
    logged when chosen. ``max_faces`` bounds the faces per picture. ``batch`` frames go through the network at once.
    ``plus_one`` counts widths as the classic NumPy NMS does; ``clip`` cuts boxes at the borders of the picture.
    ``spec`` is for ONNX files of others with other anchors.

    ``device`` is "auto" (a GPU where one can be used), "cpu", "cuda" or "cuda:N"; ``require`` "gpu" makes a CPU an
    error. ``runtime`` is "auto" or one of the device: "openvino", "onnxruntime" or "torch" on a CPU, "tensorrt" or
    "torch" on a GPU. ``precision`` None is f32 on a CPU, where "bf16" needs AVX512-BF16 or AMX, and fp16 on a GPU,
    which also takes "f32", "bf16" and "int8".

    On a CPU, ``threads`` 0 means all processors, and ``streams`` is how many networks run side by side on them: 1 (the
    default) answers a single picture soonest, 0 chooses for throughput. On a GPU ``streams`` is how many batches are on
    it at once: up to 4, by default 3. ``cuda_graph`` records the work of a batch once and replays it from then on;
    ``torch_compile`` lets torch write kernels of its own first, which takes minutes.

    Raises UsageError for values that are not allowed, ModelError for a model that cannot be used, SetupError for what
    this machine lacks, DeviceMemoryError where a GPU has too little memory for half of a batch.
    """

    def __init__(
        self,
        model: str | Path = "mnet025",
        *,
        threshold: float = 0.5,
        iou: float = 0.4,
        size: str = "auto",
        device: str = "auto",
        require: Literal["gpu"] | None = None,
        runtime: str = "auto",
        precision: str | None = None,
        max_faces: int = 750,
        threads: int = 0,
        streams: int | None = None,
        batch: int = 1,
        plus_one: bool = False,
        clip: bool = True,
        spec: DetectorSpec | None = None,
        cuda_graph: bool = True,
        torch_compile: bool = False,
    ) -> None:
        self.rules = DetectionRules(threshold, iou, max_faces, plus_one, clip)
        check_range("batch", batch, 1, 64, whole=True)
        choice = choose_device(device, require, runtime=runtime)
        found = resolve_model(model, spec=spec)
        self.size: SizePolicy = choose_size(size, found, choice.kind)
        check_batch(batch, found)
        sizing = Sizing.of(self.size, found)
        self.backend: Backend
        if choice.kind == "cuda":
            from retinastream.pipeline.gpu_backend import GpuBackend, check_gpu_settings, open_device_engine

            slots = streams or 0
            check_gpu_settings(self.rules, slots)
            engine = open_device_engine(
                found, choice, runtime=runtime, precision=precision, torch_compile=torch_compile, batch=batch
            )
            self.backend = GpuBackend(engine, self.rules, sizing, batch, streams=slots, cuda_graph=cuda_graph)
            return
        cpu_engine = create_engine(
            found,
            runtime=runtime,
            device="cpu",
            precision=precision,
            threads=threads,
            streams=1 if streams is None else streams,
            reason=choice.reason,
        )
        self.backend = CpuBackend(cpu_engine, self.rules, sizing, batch)

    @classmethod
    def from_engine(
        cls,
        engine: DeviceEngine,
        *,
        threshold: float = 0.5,
        iou: float = 0.4,
        size: str = "auto",
        max_faces: int = 750,
        streams: int = 0,
        batch: int = 1,
        plus_one: bool = False,
        clip: bool = True,
        cuda_graph: bool = True,
    ) -> Detector:
        """Make a detector of an engine on a device, which it closes when it is closed; values as for ``Detector``."""
        from retinastream.pipeline.gpu_backend import GpuBackend

        detector = cls.__new__(cls)
        detector.rules = DetectionRules(threshold, iou, max_faces, plus_one, clip)
        check_range("batch", batch, 1, 64, whole=True)
        check_batch(batch, engine.model)
        detector.size = choose_size(size, engine.model, "cuda")
        sizing = Sizing.of(detector.size, engine.model)
        detector.backend = GpuBackend(engine, detector.rules, sizing, batch, streams=streams, cuda_graph=cuda_graph)
        return detector

    @property
    def info(self) -> EngineInfo:
        """What executes the network, and why it was chosen."""
        return self.backend.info

    @property
    def execution(self) -> dict[str, Any]:
        """How batches are run on a GPU (slots, CUDA graphs); empty on a CPU."""
        return self.backend.execution

    @property
    def model(self) -> OnnxModel:
        """The model's file and what it holds."""
        return self.backend.model

    @property
    def spec(self) -> DetectorSpec:
        """The model's anchors, strides, normalisation and layout."""
        return self.model.spec

    @property
    def batch(self) -> int:
        """How many frames go through the network at once: what was asked for, or half where memory was short."""
        return self.backend.batch

    @property
    def threshold(self) -> float:
        """The lowest score returned."""
        return self.rules.threshold

    @property
    def iou(self) -> float:
        """The overlap above which the weaker of two boxes is dropped."""
        return self.rules.iou

    @property
    def max_faces(self) -> int:
        """The most faces of a picture."""
        return self.rules.max_faces

    @property
    def plus_one(self) -> bool:
        """Whether widths are counted as the classic NumPy NMS counts them."""
        return self.rules.plus_one

    @property
    def clip(self) -> bool:
        """Whether boxes are cut at the borders of the picture."""
        return self.rules.clip

    @overload
    def __call__(self, pictures: npt.NDArray[np.uint8] | Frame) -> Faces: ...
    @overload
    def __call__(self, pictures: Sequence[npt.NDArray[np.uint8] | Frame]) -> list[Faces]: ...
    def __call__(
        self, pictures: npt.NDArray[np.uint8] | Frame | Sequence[npt.NDArray[np.uint8] | Frame]
    ) -> Faces | list[Faces]:
        """Find the faces of one picture, or of each of several.

        A picture is a uint8 array (height, width, 3) in BGR order, as OpenCV reads it, or a ``Frame``.
        """
        if isinstance(pictures, np.ndarray | Frame):
            return self._run([_as_frame(pictures)])[0]
        if not isinstance(pictures, list | tuple):
            raise UsageError(
                f"pictures were given as {type(pictures).__name__}; expected a uint8 BGR array (height, width, 3), "
                "a Frame, or a list of them (for videos use detector.stream(open_video(path)))"
            )
        return self._run([_as_frame(p, index) for index, p in enumerate(pictures)])

    def detect_device(self, pictures: Any, *, stream: Any = None) -> DeviceFaces:
        """Queue the search for the faces of pictures that lie on the GPU; nothing waits, and the faces stay there.

        ``pictures`` is an array (height, width, 3) or (batch, height, width, 3) uint8 BGR of any package with
        ``__cuda_array_interface__`` or ``__dlpack__`` (CuPy, torch, PyCUDA), a ``Frame`` on the device, or a sequence
        of arrays and frames. They are read after what ``stream`` holds by now, and what is put on that stream
        afterwards may use the result: an object of CuPy, torch or PyCUDA, or a cudaStream_t as a number; by default
        the stream that the arrays name, or the legacy default stream.

        Raises UsageError for pictures of another kind or device and for a detector on a CPU.
        """
        from retinastream.pipeline.gpu_backend import GpuBackend

        if not isinstance(self.backend, GpuBackend):
            raise UsageError(
                f"detect_device was called on a detector that runs on {self.info.device}; call detector(pictures) with "
                "pictures in host memory, or create it with device='cuda'"
            )
        return self.backend.detect_device(pictures, stream)

    def stream(self, frames: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[Faces]:
        """Yield the faces of every frame, in order; decoding, detection and the caller's work overlap.

        ``frames`` is a source such as ``open_video(path)``, or any iterable of frames or BGR pictures; it is read by
        another thread, a bounded number of frames ahead. Leaving the loop early stops all threads.
        """
        if isinstance(frames, str | Path) or not isinstance(frames, Iterable):
            raise UsageError(f"stream was given {frames!r}; expected frames: detector.stream(open_video(path))")
        return self._stream(frames)

    def _stream(self, frames: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[Faces]:
        source = in_batches(_as_frames(frames), self.batch)
        stages = self.stages(steady=is_video(frames))
        try:
            with Pipeline(source, stages, source_name="decode") as pipeline:
                for _, faces in pipeline:
                    yield from faces
        finally:
            # Left open to the end of the program: a thread may have been ended with a batch in its hands.
            if not sys.is_finalizing():
                self.backend.settle()

    def stages(self, *, keep_frames: bool = False, steady: bool = False) -> list[Stage]:
        """Declare the stages from ``[Frame]`` to ``([Frame], [Faces])``; frames are let go unless they are kept.

        ``steady`` says that the frames are of one size, as those of a video: the engine then prepares for that size.
        """
        return self.backend.stages(keep_frames=keep_frames, steady=steady)

    def close(self) -> None:
        """Release the network and its buffers."""
        self.backend.close()

    def __enter__(self) -> Detector:
        """Return the detector itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self, frames: Sequence[Frame]) -> list[Faces]:
        return [faces for found in self.backend.detect(in_batches(frames, self.batch)) for faces in found]


def _as_frame(picture: npt.NDArray[np.uint8] | Frame, index: int = 0) -> Frame:
    return picture if isinstance(picture, Frame) else Frame.from_bgr(picture, index=index)


def is_video(frames: object) -> bool:
    """Whether an iterable of frames is a source that knows itself to be a video."""
    return getattr(getattr(frames, "info", None), "kind", None) == "video"


def _as_frames(pictures: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[Frame]:
    items = iter(pictures)
    try:
        for index, picture in enumerate(items):
            yield _as_frame(picture, index)
            del picture
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
