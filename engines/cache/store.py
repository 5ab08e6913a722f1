"""The cache of engines: find one, build one while others wait, keep it, put it aside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from retinastream.engines.cache import contents, durable, timing
from retinastream.engines.cache.contents import BAD_NOTE_SUFFIX, BAD_PLAN_SUFFIX, Quarantined
from retinastream.engines.cache.entry import LOCK_SUFFIX, Entry, name_of
from retinastream.engines.cache.errors import DamagedPlanError, UntrustedPlanError
from retinastream.engines.cache.folder import engines_dir
from retinastream.engines.cache.key import EngineKey, Machine
from retinastream.engines.cache.lock import Hold, held
from retinastream.engines.cache.match import Found, Miss, explain_miss, warnings
from retinastream.engines.cache.plan_header import describe_plan
from retinastream.engines.cache.sidecar import BuildRecord, write_sidecar
from retinastream.engines.cache.trust import open_folder, open_trusted

OnWait = Callable[[str], None]


class EngineCache:
    """The engines of one folder, by default that of this user.

    Reading never writes and takes no lock, so that a cache on a read-only file system can be used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = engines_dir() if folder is None else folder

    def find(self, key: EngineKey) -> Found | Miss:
        """Look for the engine of a key, or say why there is none.

        Raises UntrustedPlanError where the whole folder cannot be trusted.
        """
        try:
            with open_folder(self.folder) as folder:
                try:
                    entry = contents.read_entry(folder, self.folder, name_of(key.digest))
                except (DamagedPlanError, UntrustedPlanError) as error:
                    return Miss(f"the engine that is kept cannot be used: {error}")
        except FileNotFoundError:
            return explain_miss(key, contents.usable(self.folder)[0])
        return Found(entry, warnings(entry, key))

    def read_verified_plan(self, entry: Entry, *, used: bool = True) -> bytes:
        """Read a plan; what is returned is what was checked. ``used`` notes the moment, for prune.

        Raises UntrustedPlanError where somebody else could have written it, DamagedPlanError where it is not what was
        written.
        """
        path = entry.plan_path
        try:
            with open_folder(self.folder) as folder, open_trusted(folder, path.name, path) as file:
                # One byte more than there should be shows what is too long, however long it is.
                plan = file.read(entry.sidecar.plan_size + 1)
        except FileNotFoundError:
            raise DamagedPlanError(f"{path} is not there any more; build the engine again") from None
        except OSError as error:
            raise DamagedPlanError(f"{path} cannot be read: {error.strerror}; build the engine again") from error
        _check_plan(plan, entry)
        if used:
            with contextlib.suppress(OSError):  # a read-only cache keeps no such notes
                os.utime(entry.sidecar_path)
        return plan

    @contextmanager
    def building(
        self,
        key: EngineKey,
        *,
        gpu: str = "",
        room: int = 0,
        on_wait: OnWait | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Build]:
        """Have the only right to build the engine of a key, and with ``gpu`` (its UUID) to build on that GPU.

        Waits for a process that is building it, with a sentence to ``on_wait`` (by default a logged warning); its
        engine is then in ``Build.found``. What a killed build has left is removed. ``room`` is how many bytes must be
        free.

        Raises OutputError where the folder cannot be written or is too full, UntrustedPlanError where it cannot be
        trusted, SetupError when ``stop`` is set while waiting.
        """
        self._prepare()
        name = name_of(key.digest)
        with contextlib.ExitStack() as stack:
            hold = stack.enter_context(
                held(self.folder / f"{name}{LOCK_SUFFIX}", "building this engine", on_wait=on_wait, stop=stop)
            )
            if gpu:
                # Builds time kernels: two of them on one GPU disturb each other's choices.
                lock = self.folder / f"gpu-{hashlib.sha256(gpu.encode()).hexdigest()[:16]}{LOCK_SUFFIX}"
                stack.enter_context(held(lock, "building an engine on this GPU", on_wait=on_wait, stop=stop))
            build = self._begin(key, name, hold)
            if build.found is None:
                durable.check_room(self.folder, room)
            try:
                yield build
            finally:
                contents.remove(build.own_folder)

    def quarantine(self, entry: Entry, reason: str) -> Path | None:
        """Put a plan aside so that it is not loaded again; ``reason`` is kept with it.

        Returns where it is, None where it had been replaced by another plan in the meantime. Raises OutputError where
        the folder cannot be written.
        """
        name = name_of(entry.digest)
        with held(self.folder / f"{name}{LOCK_SUFFIX}", "working on this engine"):
            if not self._is_current(entry, name):
                return None
            bad = self.folder / f"{name}{BAD_PLAN_SUFFIX}"
            note = {
                "reason": reason,
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "model": entry.sidecar.build.model,
                "digest": entry.digest,
                "sidecar": entry.sidecar.model_dump(mode="json"),
            }
            durable.write_durably(self.folder / f"{name}{BAD_NOTE_SUFFIX}", json.dumps(note, indent=2).encode())
            try:
                entry.sidecar_path.unlink(missing_ok=True)
                entry.plan_path.replace(bad)
                durable.sync_folder(self.folder)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise durable.failure(bad, error) from error
        return bad

    def quarantined(self, digest: str = "") -> list[Quarantined]:
        """Return what was put aside, or only the plan of one digest."""
        return [item for item in contents.quarantined(self.folder) if item.name.startswith(name_of(digest))]

    def entries(self) -> list[Entry]:
        """Return the engines that can be used, the most recently used first."""
        return sorted(contents.usable(self.folder)[0], key=lambda entry: (entry.used, entry.digest), reverse=True)

    def read_timing_cache(self, machine: Machine) -> bytes:
        """Return what TensorRT learned in earlier builds on this GPU; empty where there is nothing to be used."""
        return timing.read_timings(self.folder, machine)

    def write_timing_cache(self, machine: Machine, data: bytes | memoryview) -> None:
        """Keep what TensorRT learned; a failure is logged and nothing else."""
        timing.write_timings(self.folder, machine, data)

    def publish(self, key: EngineKey, plan: bytes | memoryview, record: BuildRecord) -> Entry:
        """Keep a plan; only for the holder of the right to build it.

        The sidecar comes last: a plan without one is a leftover, whatever stopped the process in between. Raises
        OutputError where it cannot be written; an engine that was there before is then still there.
        """
        digest = hashlib.sha256(plan).hexdigest()
        size = memoryview(plan).nbytes
        entry = Entry(self.folder, write_sidecar(key, record, digest, size))
        with durable.written_part(entry.plan_path, plan) as part:
            try:
                entry.sidecar_path.unlink(missing_ok=True)
                part.replace(entry.plan_path)
            except OSError as error:
                raise durable.failure(entry.plan_path, error) from error
            durable.write_durably(entry.sidecar_path, entry.sidecar.to_text().encode())
        return entry

    def _prepare(self) -> None:
        durable.make_private_folder(self.folder)
        with open_folder(self.folder):
            pass

    def _begin(self, key: EngineKey, name: str, hold: Hold) -> Build:
        found = self.find(key)
        if hold.is_exclusive:
            for item in contents.leftovers(self.folder, name):
                contents.remove(item)
        entry = found.entry if isinstance(found, Found) else None
        return Build(self, key, entry, hold.waited)

    def _is_current(self, entry: Entry, name: str) -> bool:
        """Whether the plan that is there is still the one that was read, as far as that can be told."""
        try:
            with open_folder(self.folder) as folder:
                return contents.read_entry(folder, self.folder, name).sidecar == entry.sidecar
        except FileNotFoundError:
            return False
        except (DamagedPlanError, UntrustedPlanError):
            return True


class Build:
    """The right to build one engine. ``found`` is the engine that is kept already, None where there is none.

    ``waited`` says whether another process was building it before.
    """

    def __init__(self, cache: EngineCache, key: EngineKey, found: Entry | None, waited: bool) -> None:
        self.key = key
        self.found = found
        self.waited = waited
        self._cache = cache
        self.own_folder = durable.temporary_name(cache.folder / name_of(key.digest))

    @property
    def scratch(self) -> Path:
        """A folder for this build alone, removed at its end; it exists from its first use."""
        try:
            self.own_folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise durable.failure(self.own_folder, error) from error
        return self.own_folder

    def publish(self, plan: bytes | memoryview, record: BuildRecord) -> Entry:
        """Keep the plan; see ``EngineCache.publish``."""
        self.found = self._cache.publish(self.key, plan, record)
        return self.found


def _check_plan(plan: bytes, entry: Entry) -> None:
    header = describe_plan(plan)
    expected = entry.sidecar.plan_size
    if len(plan) != expected or hashlib.sha256(plan).hexdigest() != entry.sidecar.plan_sha256:
        if header.is_no_plan:
            reason = str(header)
        elif len(plan) != expected:
            reason = f"has {'more' if len(plan) > expected else 'fewer'} bytes than the {expected} that were written"
        else:
            reason = "is not what was written: its SHA-256 differs"
        raise DamagedPlanError(f"the engine {entry.plan_path} {reason}; build it again")
