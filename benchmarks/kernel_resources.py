"""Registers, shared memory and spills of every CUDA kernel on every architecture, without a GPU.

    python benchmarks/kernel_resources.py                          # prints the table
    python benchmarks/kernel_resources.py --write docs/kernels.md  # replaces it between its two marks

Needs nvcc. Static shared memory only; what a launch adds is the launcher's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "kernels" / "cuda"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
OPTIONS = ("-std=c++17", f"-I{SOURCES}")
BEGIN, END = "<!-- kernel resources: begin -->", "<!-- kernel resources: end -->"

_ENTRY = re.compile(r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\d+)\w?'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel of one source takes on one architecture; memory in bytes."""

    source: str
    kernel: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spills: int


def find_nvcc() -> str | None:
    """Path of the CUDA compiler: on PATH, in CUDA_HOME, or where the toolkit installs itself."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = ["nvcc", *(str(Path(place, "bin", "nvcc")) for place in places if place)]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def parse_report(text: str, source: str) -> list[Resources]:
    """Read what ptxas says with -v; ValueError where it says less than expected about a kernel."""
    found = []
    starts = list(_ENTRY.finditer(text))
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        part = text[start.end() : following.start() if following else len(text)]
        stack, registers, shared = _STACK.search(part), _REGISTERS.search(part), _SHARED.search(part)
        if stack is None or registers is None:
            raise ValueError(f"{source}: ptxas did not tell the resources of {start['kernel']}:\n{part}")
        found.append(
            Resources(
                source,
                start["kernel"],
                int(start["architecture"]),
                int(registers[1]),
                int(shared[1]) if shared else 0,
                int(stack[1]),
                int(stack[2]) + int(stack[3]),
            )
        )
    return found


def compile_source(nvcc: str, source: Path, architectures: tuple[int, ...] = ARCHITECTURES) -> list[Resources]:
    """Compile one source for all architectures; ValueError with the compiler's words where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *OPTIONS, "--fatbin", "-Xptxas", "-v", "-o", str(Path(folder, "kernels.fatbin")), str(source)]
        command += [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    if done.returncode != 0:
        raise ValueError(f"{source.name} does not compile:\n{report}")
    return parse_report(report, source.name)


def table(resources: list[Resources]) -> str:
    """A Markdown table with a row per kernel: registers on every architecture, shared memory, stack and spills."""
    architectures = sorted({r.architecture for r in resources})
    heads = [f"sm_{number}" for number in architectures]
    lines = [
        f"| kernel | source | shared, bytes | {' | '.join(heads)} | stack, bytes | spills, bytes |",
        f"|---|---|---:|{'---:|' * len(heads)}---:|---:|",
    ]
    for source, kernel in sorted({(r.source, r.kernel) for r in resources}):
        of_kernel = {r.architecture: r for r in resources if (r.source, r.kernel) == (source, kernel)}
        registers = [str(of_kernel[number].registers) if number in of_kernel else "-" for number in architectures]
        shared, stack, spills = (
            max(getattr(r, name) for r in of_kernel.values()) for name in ("shared", "stack", "spills")
        )
        lines.append(f"| `{kernel}` | `{source}` | {shared} | {' | '.join(registers)} | {stack} | {spills} |")
    return "\n".join(lines)


def replace_between_marks(page: str, content: str) -> str:
    """Put ``content`` between the two marks of a page, which get appended where it has none."""
    block = f"{BEGIN}\n{content}\n{END}"
    if BEGIN not in page or END not in page:
        return f"{page.rstrip()}\n\n{block}\n".lstrip()
    return page[: page.index(BEGIN)] + block + page[page.index(END) + len(END) :]


def main() -> int:
    """Compile all kernels and print the table or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the Markdown page to put the table into")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda; install the CUDA toolkit")
        return 1
    resources = [r for source in sorted(SOURCES.glob("*.cu")) for r in compile_source(nvcc, source)]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", version)
    content = f"nvcc {release[1] if release else '?'}, registers per thread by architecture.\n\n{table(resources)}"
    if arguments.write is None:
        print(content)
    else:
        page = arguments.write.read_text() if arguments.write.exists() else ""
        arguments.write.write_text(replace_between_marks(page, content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
