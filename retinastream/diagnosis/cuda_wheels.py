"""The CUDA that installed packages were made for, against each other and against the driver; nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from retinastream.diagnosis.finding import Finding
from retinastream.diagnosis.packages import installed_version
from retinastream.kernels import cuda_driver

_AREA = "gpu"
# The distributions and the CUDA major version that each is made for.
_TENSORRT = {"tensorrt-cu13": 13, "tensorrt-cu12": 12, "tensorrt-cu11": 11}
_CUPY = {"cupy-cuda13x": 13, "cupy-cuda12x": 12, "cupy-cuda11x": 11}
_DRIVER_SERIES = {13: 580, 12: 535}


@dataclass(frozen=True, slots=True)
class _Wheel:
    name: str
    version: str
    cuda: int

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def check_cuda_wheels() -> Iterator[Finding]:
    """Compare what TensorRT and CuPy were made for with each other and with the driver; nothing without TensorRT."""
    tensorrt = _tensorrt()
    if not tensorrt:
        return
    listed = ", ".join(map(str, tensorrt))
    if len(tensorrt) > 1:
        names = " ".join(wheel.name for wheel in tensorrt)
        remedy = f"pip uninstall -y tensorrt {names}, then pip install 'retinastream[tensorrt-cu{_wanted()}]'"
        yield Finding(_AREA, "tensorrt", "warning", f"{listed}: they overwrite each other's files", remedy)
        return
    (wheel,) = tensorrt
    driver = cuda_driver.probe().version
    if driver is not None and wheel.cuda > driver[0]:
        yield _too_new(wheel, driver)
        return
    cupy = next((w for w in _installed(_CUPY) if w.cuda != wheel.cuda), None)
    if cupy is not None:
        detail = (
            f"{wheel} is made for CUDA {wheel.cuda} and {cupy} for CUDA {cupy.cuda}: two CUDA runtimes in one process"
        )
        remedy = f"pip uninstall -y {wheel.name}, then pip install 'retinastream[tensorrt-cu{cupy.cuda}]'"
        yield Finding(_AREA, "tensorrt", "warning", detail, remedy)
        return
    serves = "" if driver is None else f", the driver serves CUDA up to {driver[0]}.{driver[1]}"
    yield Finding(_AREA, "tensorrt", "ok", f"{wheel} is made for CUDA {wheel.cuda}{serves}")


def _too_new(wheel: _Wheel, driver: tuple[int, int]) -> Finding:
    detail = f"{wheel} is made for CUDA {wheel.cuda}, and the driver serves CUDA up to {driver[0]}.{driver[1]}"
    series = _DRIVER_SERIES.get(wheel.cuda)
    newer = f"install a driver of the {series} series or newer" if series else "install a newer driver"
    older = f"pip uninstall -y {wheel.name} and pip install 'retinastream[tensorrt-cu{driver[0]}]'"
    return Finding(_AREA, "tensorrt", "warning", detail, f"{newer}, or {older}")


def _tensorrt() -> list[_Wheel]:
    found = _installed(_TENSORRT)
    if found:
        return found
    # The bare name stands for one of them, and says in its requirements for which.
    version = installed_version("tensorrt")
    match = re.search(r"tensorrt[-_]cu(\d+)", " ".join(metadata.requires("tensorrt") or [])) if version else None
    return [_Wheel("tensorrt", version, int(match[1]))] if version and match else []


def _installed(known: dict[str, int]) -> list[_Wheel]:
    return [_Wheel(name, version, cuda) for name, cuda in known.items() if (version := installed_version(name))]


def _wanted() -> int:
    driver = cuda_driver.probe().version
    return 12 if driver is not None and driver[0] == min(_DRIVER_SERIES) else max(_DRIVER_SERIES)
