"""The fake's plans: a header as the real ones begin with, then what was built, then the model."""

import json
import struct

MAGIC = 0x74727466
_HEAD = struct.Struct("<IIQQ4B")
_LENGTHS = struct.Struct("<QQ")


def write_plan(version, facts, model):
    numbers = [int(part) & 0xFF for part in version.split(".")]
    text = json.dumps(facts).encode()
    size = _HEAD.size + 36 + _LENGTHS.size + len(text) + len(model)
    return _HEAD.pack(MAGIC, 0, size, 0, *numbers) + bytes(36) + _LENGTHS.pack(len(text), len(model)) + text + model


def read_plan(plan):
    """(facts, model), or the text of the real one's complaint."""
    if len(plan) < _HEAD.size + 36 + _LENGTHS.size:
        return "Serialization assertion plan->header.size == blobSize failed."
    magic, _, size, _, *_ = _HEAD.unpack_from(plan)
    if magic != MAGIC:
        return (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
            "plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.Trying to load an engine created with incompatible "
            "serialization version.)"
        )
    if size != len(plan):
        return "Serialization assertion plan->header.size == blobSize failed."
    start = _HEAD.size + 36
    text, model = _LENGTHS.unpack_from(plan, start)
    start += _LENGTHS.size
    return json.loads(plan[start : start + text]), plan[start + text : start + text + model]
