"""The fake's enumerations, with the numbers of the real ones: several changed from 10 to 11."""

import enum


class _BoundEnum(enum.Enum):
    """As bindings make them: a number on request, equal to no number."""

    def __int__(self):
        return self.value

    def __index__(self):
        return self.value


_SAME = {
    "MemoryPoolType": {"WORKSPACE": 0, "TACTIC_DRAM": 4},
    "ProfilingVerbosity": {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2},
    "HardwareCompatibilityLevel": {"NONE": 0, "AMPERE_PLUS": 1, "SAME_COMPUTE_CAPABILITY": 2},
    "TensorIOMode": {"NONE": 0, "INPUT": 1, "OUTPUT": 2},
    "TensorLocation": {"DEVICE": 0, "HOST": 1},
    "DataType": {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5, "FP8": 6, "BF16": 7, "INT64": 8},
    "ExecutionContextAllocationStrategy": {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2},
    "LayerInformationFormat": {"ONELINE": 0, "JSON": 1},
    "ErrorCode": {
        "SUCCESS": 0,
        "INTERNAL_ERROR": 1,
        "MODEL_DESERIALIZE_FAILED": 3,
        "INVALID_NODE": 6,
        "UNSUPPORTED_NODE": 8,
    },
}
_FLAGS = {
    10: {
        "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "BuilderFlag": {"FP16": 0, "INT8": 1, "TF32": 6, "VERSION_COMPATIBLE": 13, "EXCLUDE_LEAN_RUNTIME": 14},
    },
    11: {
        "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": 0},
        "BuilderFlag": {"TF32": 6, "VERSION_COMPATIBLE": 12, "EXCLUDE_LEAN_RUNTIME": 13},
    },
}


def enums_of(major):
    return {name: _BoundEnum(name, members) for name, members in {**_SAME, **_FLAGS[major]}.items()}
