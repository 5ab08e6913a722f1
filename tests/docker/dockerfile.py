"""The Dockerfile, read as far as the tests need it: stages, instructions, build arguments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

DOCKER = Path(__file__).resolve().parents[2] / "docker"
ROOT = DOCKER.parent


@dataclass
class Stage:
    """One FROM and what follows: (instruction, text) with continuation lines joined."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction):
        return [text for name, text in self.steps if name == instruction]


def read_dockerfile(path=DOCKER / "Dockerfile"):
    """Returns (global arguments, {name: stage})."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    arguments, stages = {}, {}
    stage = None
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stage = stages[alias] = Stage(alias, base)
        elif stage is None:
            assert name == "ARG", line
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            stage.steps.append((name, rest))
    return arguments, stages


def build_arguments(stage):
    """The ARG lines of a stage with their defaults."""
    return dict(text.partition("=")[::2] for text in stage.all("ARG"))


def pins(path):
    """{normalised name: version} of a requirements file whose lines are all exact."""
    found = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
            assert match, f"{path.name}: {line!r} is not exact"
            found[normal(match[1])] = match[2]
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()
