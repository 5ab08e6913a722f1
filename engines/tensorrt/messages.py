"""What TensorRT says, and what it means here: raw text in, cause and cure out.

The raw texts are of TensorRT 8.6 to 11; several hold numbers, so they are matched by their constant parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Lines of the log that an error carries: enough for the cause, which is often a few lines above the last one.
TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class Explanation:
    """A pattern of TensorRT's text and our sentence for it; numbers in braces are the groups of the pattern."""

    pattern: re.Pattern[str]
    sentence: str


def _row(pattern: str, sentence: str) -> Explanation:
    return Explanation(re.compile(pattern, re.IGNORECASE | re.DOTALL), sentence)


# The first row that fits any line decides, so causes stand before consequences.
EXPLANATIONS: tuple[Explanation, ...] = (
    _row(
        r"CUDA initialization failure with error:?\s*35\b",
        "the NVIDIA driver is too old for this TensorRT, or there is none: packages for CUDA 13 need driver 580 or "
        "newer, those for CUDA 12 need 535 or newer (tensorrt-cu12)",
    ),
    _row(
        r"CUDA initialization failure with error:?\s*100\b",
        "no GPU is visible to this process: check CUDA_VISIBLE_DEVICES, and in a container --gpus all",
    ),
    _row(
        r"CUDA initialization failure with error:?\s*(\d+)",
        "CUDA does not start (error {1}): see whether nvidia-smi works here, and restart the machine after an "
        "update of the driver",
    ),
    _row(
        r"expecting library version (\S+) got (\S+?),? please rebuild",
        "the engine was built by TensorRT {2} and this is TensorRT {1}: build it again here",
    ),
    _row(
        r"generated on an incompatible device, expecting compute (\S+) got compute (\S+?),? please rebuild",
        "the engine was built for a GPU of compute capability {2} and this one has {1}: build it again here, and with "
        "several GPUs check their order (CUDA_DEVICE_ORDER=PCI_BUS_ID)",
    ),
    _row(
        r"not compatible with this hardware-compatible engine\.? Expected compute capability >=?\s*(\S*)",
        "the engine is for GPUs from Ampere on, and this one is older: build it here without --hardware-compatibility",
    ),
    _row(
        r"across different models of devices is not recommended",
        "the engine was built on another model of GPU: build it again here, or build it with --hardware-compatibility "
        "same-cc",
    ),
    _row(
        r"magicTag|plan->header\.size|Magic tag does not match|deserialization.*(?:corrupt|truncated)",
        "the file is not a whole engine: copy it again as a binary file, or build it again",
    ),
    _row(
        r"no optimization profile has been defined",
        "the model takes inputs of several shapes and no shape was given: use --shape WIDTHxHEIGHT and "
        "--batch SMALLEST,BEST,LARGEST",
    ),
    _row(
        r"MIN\s*<=\s*OPT\s*<=\s*MAX",
        "the shapes of a profile are out of order: expected smallest <= best <= largest",
    ),
    _row(
        r"does not satisfy any optimization profile|Static dimension mismatch while setting input shape|"
        r"setInputShape.*(?:not in range|out of range|profile)",
        "the input's shape is not one that the engine was built for: build one for it (`retinastream engine build`)",
    ),
    _row(
        r"out of memory|OutOfMemory|Requested amount of GPU memory .* could not be allocated|cudaMalloc",
        "the GPU's memory does not suffice: use a smaller batch, end other programs on it, or give --workspace less",
    ),
    _row(
        r"Could not find any implementation for node (.+?)(?: due to |\.? *$)",
        "there is no way to compute {1} within the limits: give a larger --workspace, or keep that layer in float32",
    ),
    _row(
        r"must be an initializer",
        "the graph computes something that must be a constant: fold its constants (`polygraphy surgeon sanitize "
        "--fold-constants`), or export it again with `retinastream model export`",
    ),
    _row(
        r"(?:getPluginCreator\(\) could not find [Pp]lugin|Cannot find plugin:|No importer registered for op:?|"
        r"Unsupported operator:?) *([\w.]+)",
        "the model has the operator {1}, which TensorRT does not know: export the model again with `retinastream "
        "model export`",
    ),
    _row(
        r"only supports symmetric quantization|zero[- ]?point.*(?:zero|symmetric)",
        "the model is quantised asymmetrically: quantise it with `retinastream engine quantize`, which is symmetric",
    ),
    _row(
        r"[Ss]cale coefficients must all be positive",
        "a quantisation scale is zero or negative: quantise the model with `retinastream engine quantize`",
    ),
    _row(
        r"(?:Failed to open|cannot open|unable to (?:open|read)).*(?:external|weights|\.data|\.onnx)|external data",
        "a file of the model is missing: its external weights must lie beside the .onnx file",
    ),
    _row(
        r"strongly[- ]typed.*(?:flag|precision)|(?:flag|precision).*strongly[- ]typed",
        "precision was asked for by a flag, and here it is a property of the graph: this is a mistake of this package, "
        "please report it",
    ),
    _row(
        r"no attribute '(\w+)'",
        "this version of TensorRT lacks {1}: install TensorRT 10.12 or newer",
    ),
)


def explain(lines: Iterable[str]) -> str | None:
    """Return what the lines of TensorRT's log mean and what to do, or None where none of them is known."""
    lines = list(lines)
    for row in EXPLANATIONS:
        for line in lines:
            found = row.pattern.search(line)
            if found:
                return row.sentence.format("", *((group or "").strip("\"'[]()., ") for group in found.groups()))
    return None


def failure_text(what: str, lines: Iterable[str]) -> str:
    """Write an error: what failed, the explanation where there is one, and the last lines that TensorRT wrote."""
    lines = list(lines)
    known = explain(lines)
    text = f"{what}: {known}" if known else what
    tail = [line for line in lines if line.strip()][-TAIL_LINES:]
    if tail:
        return f"{text}. TensorRT said: {' | '.join(tail)}"
    return f"{text}. TensorRT said nothing about it"
