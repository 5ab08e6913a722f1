"""CuPy as it is installed: one distribution, of the right version, made for a CUDA version that the driver serves."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from retinastream.errors import MissingPackageError, SetupError

OLDEST = 14
# Newest CUDA major version first: what CuPy it takes, the extra that brings it, and the driver series that it needs.
_PACKAGES = {13: ("cupy-cuda13x", "gpu-cu13", 580), 12: ("cupy-cuda12x", "gpu-cu12", 525)}
_DISTRIBUTIONS = (
    *(package for package, _, _ in _PACKAGES.values()),
    *("cupy", "cupy-cuda11x", "cupy-rocm-7-0", "cupy-rocm-7-1", "cupy-rocm-6-0", "cupy-rocm-5-0", "amd-cupy"),
)


def load_cupy(driver: tuple[int, int] | None) -> Any:
    """Import CuPy for a driver that serves CUDA up to the version ``driver`` (None: not known).

    MissingPackageError where it is not installed, SetupError where it cannot work: two distributions over each other,
    one that does not load, cannot make its folder, is too old, or is made for a newer CUDA than the driver serves.
    """
    _check_driver(driver)
    installed = _installed()
    if len(installed) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in installed.items())
        raise SetupError(
            f"{len(installed)} distributions of CuPy are installed and overwrite each other's files: {listed}; "
            f"pip uninstall -y {' '.join(installed)}, then {_install(driver)}"
        )
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _broken(installed, driver, error) from error
        raise MissingPackageError(
            f"CuPy is not installed, and the CUDA kernels run through it; {_install(driver)}"
        ) from error
    except OSError as error:
        if error.filename is None:  # of a library that does not load
            raise _broken(installed, driver, error) from error
        raise SetupError(
            f"CuPy cannot make the folder in which it keeps compiled kernels: {error}; set CUPY_CACHE_DIR to a folder "
            "that can be written"
        ) from error
    except Exception as error:  # a broken CuPy raises anything at import: ImportError, AttributeError
        raise _broken(installed, driver, error) from error
    _check_version(cupy, driver)
    return cupy


def _check_driver(driver: tuple[int, int] | None) -> None:
    oldest = min(_PACKAGES)
    if driver is not None and driver[0] < oldest:
        raise SetupError(
            f"the NVIDIA driver serves CUDA up to {_dotted(driver)}, and CuPy {OLDEST} needs {oldest}.0 or newer; "
            f"install a driver of the {_PACKAGES[oldest][2]} series or newer"
        )


def _check_version(cupy: Any, driver: tuple[int, int] | None) -> None:
    version = str(cupy.__version__)
    if int(version.partition(".")[0]) < OLDEST:
        raise SetupError(f"CuPy {version} is installed, and {OLDEST}.0 or newer is needed; {_install(driver)}")
    if cupy.cuda.runtime.is_hip:
        raise SetupError(
            f"CuPy {version} is made for AMD GPUs, and the kernels are for NVIDIA's; "
            f"pip uninstall -y {' '.join(_installed()) or 'cupy'}, then {_install(driver)}"
        )
    number = int(cupy.cuda.runtime.runtimeGetVersion())
    made_for = number // 1000, number % 1000 // 10
    if driver is not None and made_for[0] > driver[0]:
        series = _PACKAGES[made_for[0]][2] if made_for[0] in _PACKAGES else None
        newer = f"a driver of the {series} series or newer" if series else "a newer driver"
        raise SetupError(
            f"CuPy {version} is made for CUDA {_dotted(made_for)}, and the NVIDIA driver serves CUDA up to "
            f"{_dotted(driver)}; install {newer}, or pip uninstall -y {' '.join(_installed()) or 'cupy'} "
            f"and {_install(driver)}"
        )


def _installed() -> dict[str, str]:
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _broken(installed: dict[str, str], driver: tuple[int, int] | None, error: Exception) -> SetupError:
    listed = ", ".join(f"{name} {version}" for name, version in installed.items()) or "CuPy"
    # CuPy wraps the reason into a page of advice; the reason itself is the last exception of the chain.
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = " ".join(str(cause).split())[:300]
    remove = f"pip uninstall -y {' '.join(installed)}, then " if installed else ""
    return SetupError(f"{listed} does not load: {type(cause).__name__}: {reason}; {remove}{_install(driver)}")


def _install(driver: tuple[int, int] | None) -> str:
    if driver is None:
        return "pip install 'retinastream[gpu-cu13]', or [gpu-cu12] with a driver for CUDA 12"
    served = max(major for major in _PACKAGES if major <= driver[0])
    return f"pip install 'retinastream[{_PACKAGES[served][1]}]' (the driver serves CUDA up to {_dotted(driver)})"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
