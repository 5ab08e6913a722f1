"""Runs all checks and draws the conclusion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retinastream.diagnosis import codecs, container, cuda_wheels, gpu, packages, processor, runtimes, storage
from retinastream.diagnosis.finding import Finding

logger = logging.getLogger(__name__)

# In the order in which a person would look: what is installed, what it runs on, what it reads and writes.
CHECKS: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
    ("packages", packages.check_packages),
    ("processor", processor.check_processor),
    ("runtimes", runtimes.check_runtimes),
    ("codecs", codecs.check_codecs),
    ("gpu", gpu.check_gpu),
    ("gpu", container.check_container),
    ("gpu", cuda_wheels.check_cuda_wheels),
    ("models", storage.check_models),
    ("disk", storage.check_disk),
    ("settings", storage.check_settings),
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, grouped by area in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether detection on the CPU can work: nothing that it needs is absent or broken."""
        return not any(finding.status == "error" for finding in self.findings)

    @property
    def summary(self) -> str:
        """The conclusion in one sentence."""
        if not self.ready:
            broken = ", ".join(f"{f.area}/{f.name}" for f in self.findings if f.status == "error")
            return f"not ready: {broken}; what to do is said with each"
        text = "ready: detection on the CPU can work"
        warnings = sum(finding.status == "warning" for finding in self.findings)
        if warnings:
            text += f", with {warnings} warning{'s' if warnings > 1 else ''}"
        if any(f.area == "models" and f.name == "detectors" and f.status == "missing" for f in self.findings):
            text += "; no model is on this machine yet"
        return text


def diagnose() -> Diagnosis:
    """Look at everything; takes a second or two, needs no network and writes nothing."""
    found: list[Finding] = []
    for area, check in CHECKS:
        try:
            found += check()
        except Exception as error:
            # A sick machine fails in ways nobody foresaw, and the other findings are what is needed then. What
            # detection cannot do without is judged inside the checks; a check that dies is no proof against it.
            logger.debug("the check of %s failed", area, exc_info=True)
            detail = f"could not be looked at: {type(error).__name__}: {first_line(error)}"
            found.append(Finding(area, "check", "warning", detail, "report this, with the output of doctor --json"))
    return Diagnosis(tuple(found))


def first_line(error: Exception) -> str:
    """Return the beginning of an error's message."""
    return str(error).strip().partition("\n")[0]
