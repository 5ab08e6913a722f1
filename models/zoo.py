"""From what a user calls a model (a name, an ONNX file, a checkpoint) to a file that can be run."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import platformdirs

from retinastream.errors import MissingPackageError, ModelError
from retinastream.models.download import download
from retinastream.models.onnx_file import EXPORTER_VERSION, SOURCE_KEY, OnnxModel, read_onnx
from retinastream.models.onnx_graph import file_sha256, read_graph
from retinastream.models.spec import DetectorSpec, OutputLayout
from retinastream.models.zoo_entries import ZooEntry, find_by_sha256, zoo

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "RETINASTREAM_CACHE"
_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")


def cache_dir() -> Path:
    """Return the folder of models: ``models`` in the user's cache directory, or in RETINASTREAM_CACHE when set."""
    given = os.environ.get(CACHE_VARIABLE)
    root = Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("retinastream"))
    return root / "models"


def cached_path(name: str) -> Path:
    """Return where a model that is fetched or exported under this zoo name lies, or will lie."""
    return cache_dir() / f"{name}.onnx"


def path_of(entry: ZooEntry) -> Path:
    """Return where the model of this entry lies, or will lie: in the package, or in the cache."""
    if entry.bundled is None:
        return cached_path(entry.name)
    return Path(str(resources.files("retinastream.models"))) / "weights" / entry.bundled


def resolve_model(model: str | Path, *, spec: DetectorSpec | None = None) -> OnnxModel:
    """Find the detector that ``model`` means: a zoo name, an .onnx file, or a checkpoint.

    A checkpoint is exported once to the cache, which needs the ``export`` extra. ``spec`` is for files that do not say
    their anchors themselves.

    Raises ModelError when there is no such model or it is not a detector, and MissingPackageError when a checkpoint
    cannot be exported because the extra is not installed.
    """
    if isinstance(model, str) and model in zoo():
        return _from_zoo(zoo()[model], spec)
    path = Path(model).expanduser()
    if not path.exists():
        raise ModelError(_unknown(str(model), path))
    if path.suffix.lower() in _CHECKPOINT_SUFFIXES:
        return _from_checkpoint(path, spec)
    return read_onnx(path, spec=spec)


def find_entry(name: str) -> ZooEntry:
    """Return the zoo entry called ``name``; raises ModelError that names the nearest ones."""
    if name not in zoo():
        raise ModelError(_unknown(name, None))
    return zoo()[name]


def pull(name: str, *, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Download the zoo model ``name`` into the cache and return its path; an intact file there is kept.

    ``progress`` is called with the bytes that are there and the total, or None where that is unknown.

    Nothing is fetched for a model that is part of the package.

    Raises ModelError for unknown names, models without a download address and wrong contents; SetupError when the
    network fails; OutputError when the cache cannot be written.
    """
    entry = find_entry(name)
    if entry.bundled is not None:
        return _from_zoo(entry, None).path
    if entry.url is None:
        raise ModelError(f"{name} cannot be downloaded by this command. {entry.manual}")
    path = cached_path(name)
    if not (path.is_file() and file_sha256(path) == entry.sha256):
        download(entry.url, path, entry.sha256, size=entry.size, progress=progress)
    return path


def export_checkpoint(
    checkpoint: Path, out: Path, *, layout: OutputLayout = "fused", spec: DetectorSpec | None = None
) -> Path:
    """Export ``checkpoint`` to ``out``; raises MissingPackageError where the ``export`` extra is not installed."""
    try:
        from retinastream.models.export import export_onnx
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] not in ("torch", "onnx"):
            raise
        raise MissingPackageError(
            f"{checkpoint} is a PyTorch checkpoint; to export it to ONNX the package {error.name} is needed: "
            "pip install 'retinastream[export]' (on this or any other machine, the .onnx file runs without it)"
        ) from error
    return export_onnx(checkpoint, out, layout, spec=spec)


def export_destination(checkpoint: Path, layout: OutputLayout) -> Path:
    """Return where an export goes when no output is given.

    A fused export of a checkpoint of the zoo goes into the cache under its zoo name; anything else becomes
    ``<stem>-<layout>.onnx`` in the working directory.
    """
    if not checkpoint.is_file():
        raise ModelError(f"checkpoint {checkpoint} does not exist or is not a file")
    entry = find_by_sha256(file_sha256(checkpoint))
    if entry is not None and entry.format == "checkpoint" and layout == "fused":
        return cached_path(entry.name)
    return Path(f"{checkpoint.stem}-{layout}.onnx")


def _from_zoo(entry: ZooEntry, spec: DetectorSpec | None) -> OnnxModel:
    if entry.kind != "detector":
        detectors = ", ".join(e.name for e in zoo().values() if e.kind == "detector")
        raise ModelError(f"{entry.name} is an embedder and finds no faces; detectors are {detectors}")
    path = path_of(entry)
    how = f"run `retinastream model pull {entry.name}`" if entry.url else entry.manual
    if entry.bundled is not None:
        how = "install the package again, it is a part of it"
    if not path.is_file():
        raise ModelError(
            f"the model {entry.name} is not on this machine yet (looked in {path.parent}). To get it: {how}"
        )
    if entry.format == "checkpoint":
        intact = read_graph(path).metadata.get(SOURCE_KEY) == entry.sha256
        model = read_onnx(path, spec=spec, name=entry.name)
    else:
        model = read_onnx(path, spec=spec or entry.detector_spec, name=entry.name)
        intact = model.sha256 == entry.sha256
    if not intact:
        raise ModelError(f"{path} is not the file that {entry.name} names (its sha256 differs). To replace it: {how}")
    return model


def _from_checkpoint(path: Path, spec: DetectorSpec | None) -> OnnxModel:
    """Export a checkpoint once; the name in the cache says everything that the exported file depends on."""
    sha256 = file_sha256(path)
    entry = find_by_sha256(sha256)
    known = None if entry is None else entry.detector_spec
    chosen = known if spec is None else replace(spec, output_layout="fused")
    values = None if chosen is None else chosen.to_dict()
    spec_key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    out = cache_dir() / "exported" / f"{sha256[:24]}-{spec_key}-{EXPORTER_VERSION}.onnx"
    # A file that does not say its spec is refused by the loader and leaves no export behind, so it is asked again.
    if not out.is_file():
        logger.info("exporting %s to %s", path, out)
        export_checkpoint(path, out, spec=spec)
    return read_onnx(out, name=path.stem if entry is None else entry.name)


def _unknown(name: str, path: Path | None) -> str:
    if path is not None and (path.suffix or len(path.parts) > 1):
        return (
            f"model file {name} does not exist; give an .onnx file, a .pth checkpoint or a name of "
            "`retinastream model list`"
        )
    near = difflib.get_close_matches(name, zoo(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown model {name!r}; {hint}`retinastream model list` shows all names; a path to an .onnx file works too"
