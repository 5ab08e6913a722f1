"""What the first bytes of a file say about it, for messages that help: TensorRT only says that it does not like it.

The layout of a plan is not documented. What is read here was seen in TensorRT's own tools, so it explains a failure and
never decides one, except for files that are plainly text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 256
_MAGIC = (0x74727466).to_bytes(4, "little")
_VERSION = slice(24, 28)
_LFS = b"version https://git-lfs"
_TEXT = frozenset(range(32, 127)) | {9, 10, 13}
_SHORTEST_PLAN = 64


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What a file seems to be; ``tensorrt`` is the version that wrote it, where the header says one."""

    kind: Literal["plan", "lfs-pointer", "text", "empty", "unknown"]
    tensorrt: str | None = None

    @property
    def is_no_plan(self) -> bool:
        """Whether it certainly is no plan."""
        return self.kind in ("lfs-pointer", "text", "empty")

    def __str__(self) -> str:
        """Return it as a clause after "the file ...", with what to do."""
        return {
            "plan": f"was written by TensorRT {self.tensorrt}",
            "lfs-pointer": "is a pointer of Git LFS and not the file that it stands for; run `git lfs pull`",
            "text": "is text, not an engine",
            "empty": "is empty, or too short to be an engine",
            "unknown": "does not begin as TensorRT's engines do",
        }[self.kind]


def describe_plan(head: bytes | memoryview) -> PlanHeader:
    """Judge a file by its first HEAD_BYTES bytes."""
    head = bytes(head[:HEAD_BYTES])
    if head.startswith(_LFS):
        return PlanHeader("lfs-pointer")
    if head and _TEXT.issuperset(head):
        return PlanHeader("text")
    if len(head) < _SHORTEST_PLAN:
        return PlanHeader("empty")
    if head.startswith(_MAGIC):
        return PlanHeader("plan", ".".join(str(byte) for byte in head[_VERSION]))
    return PlanHeader("unknown")
