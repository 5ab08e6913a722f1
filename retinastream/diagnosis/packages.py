"""Python and the packages: which are there, in which version, and what brings those that are not."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from retinastream import __version__
from retinastream.diagnosis.finding import Finding

_AREA = "packages"

# Distribution and the module that it brings. OpenCV and the runtimes have checks of their own.
_REQUIRED = (
    ("numpy", "numpy"),
    ("av", "av"),
    ("pydantic", "pydantic"),
    ("pyyaml", "yaml"),
    ("typer", "typer"),
    ("rich", "rich"),
    ("platformdirs", "platformdirs"),
)
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")


class _Optional(NamedTuple):
    name: str
    distributions: tuple[str, ...]
    purpose: str
    extra: str


_NOT_YET = "not used by this version yet"
_OPTIONAL = (
    _Optional("torch", ("torch",), "exports .pth checkpoints; a runtime for GPUs", "'retinastream[export]'"),
    _Optional("onnx", ("onnx",), "exports .pth checkpoints", "'retinastream[export]'"),
    _Optional("supervision", ("supervision",), "Faces.to_supervision()", "'retinastream[supervision]'"),
    _Optional(
        "cupy",
        ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "runs the kernels on a GPU",
        "'retinastream[gpu-cu13]' or 'retinastream[gpu-cu12]'",
    ),
    _Optional(
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "the fastest runtime on a GPU",
        "'retinastream[tensorrt-cu13]' or 'retinastream[tensorrt-cu12]'",
    ),
    _Optional("pycuda", ("pycuda",), _NOT_YET, "'retinastream[pycuda]'"),
)


def check_packages() -> Iterator[Finding]:
    """Look at Python, the required packages, OpenCV and the optional packages."""
    yield _python()
    yield _system()
    yield Finding(_AREA, "retinastream", "ok", __version__)
    for distribution, module in _REQUIRED:
        yield _required(distribution, module)
    yield _opencv()
    yield from (_optional(package) for package in _OPTIONAL)


def load(module: str) -> tuple[ModuleType | None, str]:
    """Import a module; returns it and "", or None and the reason."""
    try:
        return importlib.import_module(module), ""
    except Exception as error:  # noqa: BLE001 - broken packages raise anything at import: OSError, AttributeError, ...
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def outdated(distribution: str, version: str) -> str | None:
    """Return the lowest version that this package asks for when ``version`` is below it."""
    lowest = _lowest_versions().get(distribution)
    return lowest if lowest is not None and _numbers(version) < _numbers(lowest) else None


@cache
def _lowest_versions() -> dict[str, str]:
    try:
        lines = metadata.requires("retinastream") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return {}
    matches = (re.match(r"([\w.-]+)>=([\d.]+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in matches if match}


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _python() -> Finding:
    detail = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    return Finding(_AREA, "python", "ok", detail)


def _system() -> Finding:
    detail = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux":
        return Finding(_AREA, "system", "ok", detail)
    return Finding(_AREA, "system", "warning", detail, "this package is made for Linux and is not tested elsewhere")


def _required(distribution: str, module: str) -> Finding:
    imported, problem = load(module)
    version = installed_version(distribution)
    if imported is None:
        if version is None:
            return Finding(_AREA, distribution, "error", "not installed", f"pip install {distribution}")
        remedy = f"pip install --force-reinstall {distribution}"
        return Finding(_AREA, distribution, "error", f"{version} does not load: {problem}", remedy)
    version = version or str(getattr(imported, "__version__", "unknown version"))
    detail = f"{version}{_ffmpeg(imported)}" if module == "av" else version
    lowest = outdated(distribution, version)
    if lowest is not None:
        remedy = f"pip install '{distribution}>={lowest}'"
        return Finding(_AREA, distribution, "warning", f"{detail}; this package asks for {lowest} or newer", remedy)
    return Finding(_AREA, distribution, "ok", detail)


def _ffmpeg(av: ModuleType) -> str:
    return f", FFmpeg {getattr(av, 'ffmpeg_version_info', 'of unknown version')}"


def _opencv() -> Finding:
    """Judge OpenCV by its distributions: all four bring the same folder, so that two of them overwrite each other."""
    installed = {name: version for name in _OPENCV if (version := installed_version(name))}
    listed = ", ".join(f"{name} {version}" for name, version in installed.items())
    cv2, problem = load("cv2")
    if len(installed) > 1:
        detail = f"{listed}: they overwrite each other's files" + (f"; cv2 does not load: {problem}" if problem else "")
        names, keep = " ".join(installed), list(installed)[-1]
        remedy = f"keep one of them: pip uninstall -y {names} && pip install --force-reinstall --no-deps {keep}"
        return Finding(_AREA, "opencv", "warning" if cv2 else "error", detail, remedy)
    if cv2 is None:
        return _broken_opencv(next(iter(installed), None), listed, problem)
    if not installed:
        version = getattr(cv2, "__version__", "of unknown version")
        return Finding(_AREA, "opencv", "ok", f"cv2 {version}, not from one of pip's OpenCV packages")
    ((name, version),) = installed.items()
    lowest = outdated("opencv-python-headless", version)
    if lowest is not None:
        remedy = f"pip install '{name}>={lowest}'"
        return Finding(_AREA, "opencv", "warning", f"{listed}; this package asks for {lowest} or newer", remedy)
    return Finding(_AREA, "opencv", "ok", f"{listed} (cv2 {getattr(cv2, '__version__', 'of unknown version')})")


def _broken_opencv(distribution: str | None, listed: str, problem: str) -> Finding:
    if distribution is None:
        return Finding(_AREA, "opencv", "error", "not installed", "pip install opencv-python-headless")
    if "libGL" in problem or "libgthread" in problem:
        remedy = f"pip uninstall -y {distribution} && pip install opencv-python-headless (it needs no window system)"
    else:
        remedy = f"pip install --force-reinstall --no-deps {distribution}"
    return Finding(_AREA, "opencv", "error", f"{listed} does not load: {problem}", remedy)


def _optional(package: _Optional) -> Finding:
    # Versions only: importing torch or CuPy takes seconds and touches the GPU.
    installed = [f"{name} {version}" for name in package.distributions if (version := installed_version(name))]
    if not installed:
        remedy = f"pip install {package.extra}, if wanted"
        return Finding(_AREA, package.name, "missing", f"not installed ({package.purpose})", remedy)
    detail = f"{', '.join(installed)} ({package.purpose})"
    if package.name == "cupy" and len(installed) > 1:
        names = " ".join(text.split()[0] for text in installed)
        remedy = f"pip uninstall -y {names}, then install the one for your CUDA version"
        return Finding(_AREA, "cupy", "warning", f"{detail}: they overwrite each other's files", remedy)
    return Finding(_AREA, package.name, "ok", detail)
