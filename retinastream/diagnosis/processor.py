"""The processor: how much of it this process may use, and which precisions are fast on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

from retinastream.diagnosis.finding import Finding
from retinastream.engines.cpu import cpu_count, cpu_flags, cpu_name, has_fast_bf16

_AREA = "processor"
_X86 = ("x86_64", "AMD64")


def check_processor() -> Iterator[Finding]:
    """Look at the processor's name, the usable cores, the instruction sets and bfloat16."""
    yield Finding(_AREA, "name", "ok", cpu_name())
    yield _cores()
    yield _instruction_sets()
    yield _bf16()


def _cores() -> Finding:
    usable, present = cpu_count(), os.cpu_count() or 1
    if usable >= present:
        return Finding(_AREA, "cores", "ok", f"{usable}, all usable by this process")
    remedy = "if more are meant to be used: widen the container's CPU limit, or the affinity (taskset, Slurm)"
    return Finding(_AREA, "cores", "ok", f"{usable} of {present} usable by this process", remedy)


def _instruction_sets() -> Finding:
    flags = cpu_flags()
    detail = ", ".join(sorted(flags)) or "none of those that matter here were reported by the system"
    if platform.machine() in _X86 and flags and "avx2" not in flags:
        return Finding(_AREA, "instructions", "warning", f"{detail}; no AVX2: detection will be slow")
    return Finding(_AREA, "instructions", "ok", detail)


def _bf16() -> Finding:
    if has_fast_bf16():
        return Finding(_AREA, "bf16", "ok", "computed in hardware: --precision bf16 is available and faster than f32")
    return Finding(_AREA, "bf16", "missing", "not in hardware: --precision bf16 is refused, the default f32 is used")
