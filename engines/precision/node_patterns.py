"""Choosing nodes of a graph by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from retinastream.errors import UsageError
from retinastream.settings import nearest


def matching_nodes(model: Any, patterns: Sequence[str]) -> set[str]:
    """Return the names of the nodes that any of ``patterns`` means: a name, or one with ``*``, ``?`` and ``[...]``.

    Raises UsageError for a pattern that means none, which is most often a slip of the pen.
    """
    names = [node.name for node in model.graph.node]
    return {name for pattern in patterns for name in _matches(pattern, names)}


def _matches(pattern: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(f"no node of the model is called {pattern!r}; {_hint(pattern, list(names))}")
    return found


def _hint(pattern: str, names: list[str]) -> str:
    close = nearest(pattern, names)
    return close if close.startswith("did") else f"its {len(names)} nodes are called {', '.join(names[:5])}, ..."
