"""Engines that leave the cache as a file, and those that come in: the only way for a plan made elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from retinastream.engines.cache import durable
from retinastream.engines.cache.entry import PLAN_SUFFIX, SIDECAR_SUFFIX, Entry
from retinastream.engines.cache.errors import DamagedPlanError, UntrustedPlanError
from retinastream.engines.cache.key import this_system
from retinastream.engines.cache.sidecar import Sidecar, read_sidecar
from retinastream.engines.cache.store import EngineCache
from retinastream.errors import InputError, UsageError

_LARGEST_SIDECAR = 16 << 20
_ANOTHER = "give another place"
# The same engine gives the same file, whenever it is exported.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def export_engine(cache: EngineCache, entry: Entry, target: Path, *, overwrite: bool = False) -> Path:
    """Write an engine and its sidecar to ``target``: a .zip file, or a folder that gets two files.

    Raises UsageError where it exists already, OutputError where it cannot be written, and what reading a plan raises.
    """
    plan = cache.read_verified_plan(entry)
    files = {entry.plan_path.name: plan, entry.sidecar_path.name: entry.sidecar.to_text().encode()}
    if target.suffix.lower() == ".zip":
        _refuse_existing((target,), overwrite)
        return _write_zip(files, target)
    if target.suffix and not target.is_dir():
        raise UsageError(f"{target} is neither a .zip file nor a folder; give a name that ends in .zip, or a folder")
    _refuse_existing([target / name for name in files], overwrite)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.failure(target, error, _ANOTHER) from error
    for name, content in files.items():
        durable.write_durably(target / name, content, _ANOTHER)
    return target


def import_engine(cache: EngineCache, source: Path, *, trust: bool) -> tuple[Entry, tuple[str, ...]]:
    """Take an engine that ``export_engine`` wrote into the cache; returns it and sentences of warning.

    ``source`` is the .zip file, the folder, or the plan in it. ``trust`` says that the user vouches for whoever built
    it: SHA-256 sums show that it is what was exported, not what it does.

    Raises UntrustedPlanError without ``trust``, InputError where the source cannot be read, DamagedPlanError where it
    is not what was exported.
    """
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder; give what `retinastream engine export` wrote")
    if not trust:
        raise UntrustedPlanError(
            f"{source} holds an engine, and an engine is code that runs with your rights; nothing in the file can "
            "prove that it is harmless. If you trust whoever built it and the way it came, give --trust; otherwise "
            "build it here"
        )
    plan, sidecar = _read_zip(source) if source.suffix.lower() == ".zip" else _read_folder(source)
    with cache.building(sidecar.key, room=sidecar.plan_size) as build:
        entry = build.publish(plan, sidecar.build)
    return entry, _warnings(sidecar)


def _warnings(sidecar: Sidecar) -> tuple[str, ...]:
    machine = sidecar.key.machine
    if machine.system != this_system():
        return (f"the engine was built for {machine.system} and will not be used here, on {this_system()}",)
    return (f"the engine was built for {machine.gpu} with TensorRT {machine.tensorrt} and is used only there",)


def _refuse_existing(paths: tuple[Path, ...] | list[Path], overwrite: bool) -> None:
    there = [str(path) for path in paths if path.exists() or path.is_symlink()]
    if there and not overwrite:
        raise UsageError(f"{', '.join(there)} exists; give --overwrite to replace it, or another name")


def _write_zip(files: dict[str, bytes], target: Path) -> Path:
    part = durable.temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ZipFile(part, "x", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(ZipInfo(name, _ZIP_TIME), content)
        part.replace(target)
    except OSError as error:
        raise durable.failure(target, error, _ANOTHER) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return target


def _read_zip(source: Path) -> tuple[bytes, Sidecar]:
    """Read the two files of an archive by their names; nothing is unpacked to a path that the archive gives."""
    try:
        with ZipFile(source) as archive:
            names = archive.namelist()
            sidecar = _sidecar(archive, _only(names, SIDECAR_SUFFIX, source), source)
            info = archive.getinfo(_only(names, PLAN_SUFFIX, source))
            if info.file_size != sidecar.plan_size:
                raise DamagedPlanError(_differs(source))
            return _checked(archive.read(info), sidecar, source), sidecar
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedPlanError(f"{source} is no archive of an engine: {error}; export it again") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error


def _sidecar(archive: ZipFile, name: str, source: Path) -> Sidecar:
    info = archive.getinfo(name)
    if info.file_size > _LARGEST_SIDECAR:
        raise DamagedPlanError(f"{source}: {name} is too large for a sidecar ({info.file_size} bytes)")
    return read_sidecar(archive.read(info), f"{source}: {name}")


def _read_folder(source: Path) -> tuple[bytes, Sidecar]:
    try:
        if source.is_dir():
            folder = source
            stem = _only([path.name for path in source.iterdir()], PLAN_SUFFIX, source).removesuffix(PLAN_SUFFIX)
        else:
            folder, stem = source.parent, source.stem
        beside = folder / f"{stem}{SIDECAR_SUFFIX}"
        if source.exists() and not beside.exists():
            raise DamagedPlanError(
                f"{source} has no sidecar: {beside.name} is not beside it. A plan that does not say what it was built "
                "for cannot be kept; build the engine here from its ONNX file"
            )
        sidecar = read_sidecar(beside.read_bytes(), str(beside))
        return _checked((folder / f"{stem}{PLAN_SUFFIX}").read_bytes(), sidecar, source), sidecar
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error


def _only(names: list[str], suffix: str, source: Path) -> str:
    found = [name for name in names if name.endswith(suffix)]
    if len(found) != 1:
        raise DamagedPlanError(
            f"{source} holds {len(found)} files that end in {suffix}, an export holds one; export it again"
        )
    return found[0]


def _checked(plan: bytes, sidecar: Sidecar, source: Path) -> bytes:
    if len(plan) != sidecar.plan_size or hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise DamagedPlanError(_differs(source))
    return plan


def _differs(source: Path) -> str:
    return f"the plan in {source} is not the one that its sidecar describes; copy or export it again"
