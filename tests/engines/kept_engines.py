"""Keys, plans and sidecars for the tests of the engine cache: TensorRT is not needed to keep bytes."""

from __future__ import annotations

from typing import Any

from retinastream.engines.cache.key import EngineKey, Machine, ShapeRange
from retinastream.engines.cache.sidecar import BuildRecord, TensorFacts
from retinastream.engines.cache.store import EngineCache

H200 = Machine(
    tensorrt="11.4.0.106",
    gpu="NVIDIA H200",
    compute_capability=(9, 0),
    multiprocessors=132,
    memory_gib=140,
    driver_cuda="13.1",
    cuda_major=13,
    system="linux-x86_64",
)
SHAPES = ShapeRange(minimum=(1, 3, 736, 1280), optimum=(4, 3, 736, 1280), maximum=(4, 3, 736, 1280))


def machine(**changes: Any) -> Machine:
    return H200.model_copy(update=changes)


def key(**changes: Any) -> EngineKey:
    values: dict[str, Any] = {
        "onnx_sha256": "ab" * 32,
        "precision": "fp16",
        "recipe": {"tool": "onnxconverter-common 1.16.0", "blocked": ["Softmax"]},
        "profiles": ({"images": SHAPES},),
        "builder": {"optimization_level": 3, "flags": ["STRONGLY_TYPED"]},
        "machine": H200,
    }
    return EngineKey(**{**values, **changes})


def plan(seed: int = 0, size: int = 4096, version: tuple[int, ...] = (11, 4, 0, 106)) -> bytes:
    """Bytes that begin as a plan of TensorRT does."""
    head = (0x74727466).to_bytes(4, "little") + bytes(20) + bytes(version)
    body = bytes((seed + 7 * i) % 256 for i in range(size - len(head)))
    return head + body


def record(**changes: Any) -> BuildRecord:
    values: dict[str, Any] = {
        "model": "mnet025",
        "build_seconds": 93.5,
        "tensors": (TensorFacts(name="images", mode="input", dtype="float16", shape=(-1, 3, 736, 1280)),),
        "log_tail": ("[I] Engine generation completed",),
        "accuracy": {"boxes": {"worst": 0.25}},
    }
    return BuildRecord(**{**values, **changes})


def keep(cache: EngineCache, of: EngineKey | None = None, content: bytes | None = None, **changes: Any):
    with cache.building(of or key()) as build:
        return build.publish(plan() if content is None else content, record(**changes))
