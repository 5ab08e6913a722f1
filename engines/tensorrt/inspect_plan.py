"""What an engine consists of: layers by kind and precision, and the reformatting that costs time between them.

TensorRT describes its engine as JSON whose names have changed between versions; what is not understood is counted as
unknown and never an error.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from retinastream.engines.tensorrt.loaded_plan import LoadedPlan

# "Format/Datatype" of a tensor, such as "Channel major FP16 format where C % 8 == 0" or "Row major linear Int8".
_PRECISIONS = (
    ("INT8", ("int8",)),
    ("FP8", ("fp8", "e4m3")),
    ("FP16", ("fp16", "half", "float16")),
    ("BF16", ("bf16", "bfloat16")),
    ("FP32", ("fp32", "float32", "float")),
    ("INT32", ("int32",)),
    ("INT64", ("int64",)),
    ("BOOL", ("bool",)),
)


def summarise_layers(plan: LoadedPlan) -> dict[str, object]:
    """Return ``count``, ``precisions`` (layers by the type of their first output), ``kinds`` and ``reformats``.

    ``reformats`` counts layers that only bring a tensor into another layout or type.
    """
    layers = describe_layers(plan)
    precisions = Counter(_precision(layer) for layer in layers)
    kinds = Counter(str(layer.get("LayerType", "unknown")) for layer in layers)
    return {
        "count": len(layers),
        "precisions": dict(precisions.most_common()),
        "kinds": dict(kinds.most_common()),
        "reformats": sum(_is_reformat(layer) for layer in layers),
    }


def describe_layers(plan: LoadedPlan) -> list[dict[str, Any]]:
    """Return TensorRT's own description of every layer; of layers that only have a name, that name."""
    try:
        layers = json.loads(plan.layers_json()).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def _is_reformat(layer: dict[str, Any]) -> bool:
    text = f"{layer.get('LayerType', '')} {layer.get('Name', '')}".lower()
    return "reformat" in text


def _precision(layer: dict[str, Any]) -> str:
    outputs = layer.get("Outputs") or [{}]
    first = outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) else {}
    text = str(first.get("Format/Datatype") or first.get("Datatype") or "").lower()
    for name, words in _PRECISIONS:
        if any(word in text for word in words):
            return name
    return "unknown"
