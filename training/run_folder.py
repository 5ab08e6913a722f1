"""The folder that a run lives in: what is where, and whether it may be begun or continued."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinastream.errors import OutputError, UsageError
from retinastream.training.checkpoint import saved_steps
from retinastream.training.config import TrainConfig
from retinastream.training.config_file import parse_config


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration as run."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Numbered checkpoints and ``best.pth``."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint whose evaluation was best."""
        return self.checkpoints / "best.pth"

    @property
    def model(self) -> Path:
        """The exported moving average at the end."""
        return self.path / "model.onnx"

    @property
    def report(self) -> Path:
        """What came of the run."""
        return self.path / "report.json"

    def latest(self) -> Path:
        """Return the newest checkpoint; UsageError where there is none."""
        found = saved_steps(self.checkpoints)
        if not found:
            again = f", after removing {self.path}" if self._holds_something() else ""
            raise UsageError(f"{self.checkpoints} holds no checkpoint to resume from; start without --resume{again}")
        return found[-1][1]

    def require_new(self) -> None:
        """Refuse a folder that holds anything: the results of another run are not overwritten."""
        if self._holds_something():
            begun = saved_steps(self.checkpoints)
            way = "give --resume to go on with it" if begun else "it has no checkpoint: remove it"
            raise UsageError(f"{self.path} exists and is not empty; {way}, or give another --output")
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; expected a folder for the run")

    def _holds_something(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def prepare(self, needed_bytes: int) -> None:
        """Create the folders and try to write; OutputError where that fails or less than ``needed_bytes`` are free."""
        probe = self.checkpoints / f"probe.{os.getpid()}.part"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"\0" * 4096)
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise OutputError(
                f"the run folder {self.path} cannot be written: {error.strerror or error}; give another --output"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        if free < needed_bytes:
            raise OutputError(
                f"the run folder {self.path} has {free / 1e6:.0f} MB free and the checkpoints of the run need "
                f"{needed_bytes / 1e6:.0f} MB; make room, lower run.keep, or give another --output"
            )

    def abandon(self) -> None:
        """Remove folders that a run left empty because it never began, so that it may be started again."""
        for folder in (self.checkpoints, self.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def write_config(self, config: TrainConfig) -> None:
        """Write the configuration as it runs."""
        import yaml

        self._write(self.config, yaml.safe_dump(config.plain(), sort_keys=False))

    def read_config(self) -> TrainConfig:
        """Read the configuration back; UsageError where there is none."""
        import yaml

        try:
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"{self.config} cannot be read ({error.strerror}); {self.path} is no run that could be resumed"
            ) from error
        return parse_config(values, str(self.config))

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file beside the configuration."""
        self._write(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")
        return self.path / name

    def write_text(self, name: str, content: str) -> None:
        """Write a text file beside the configuration."""
        self._write(self.path / name, content)

    def _write(self, path: Path, text: str) -> None:
        partial = path.with_name(path.name + ".part")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path} could not be written: {error.strerror or error}") from error
