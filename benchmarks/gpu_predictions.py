"""What docs/kernels.md predicts for an H200 and a batch of 8 frames of 3840x2160: microseconds, least and most.

A test holds these against the tables of that page. They say nothing about another GPU or another size.
"""

from __future__ import annotations

PREDICTED_US: dict[str, tuple[float, float]] = {
    "preprocess NV12 -> fp16, native, 3840x2176": (130, 150),
    "preprocess NV12 -> fp32, native": (230, 260),
    "preprocess NV12 -> int8, native": (85, 110),
    "preprocess P010 -> fp16, native": (155, 180),
    "preprocess YUV420P -> fp16, native (upload path)": (130, 150),
    "preprocess NV12 -> fp16, fit:1280 (means of 3x3)": (90, 130),
    "preprocess NV12 -> fp16, 90 degrees, native": (250, 400),
    "preprocess BGR24 -> fp16, native": (190, 250),
    "align, 100 faces a frame: 800 crops of 112, u8": (70, 100),
    "redact (blur), 100 faces of 100x100 a frame, enlarged 1.3": (60, 110),
    "redact (solid), same": (40, 80),
    "draw, 100 faces a frame": (30, 60),
    "find, fused fp16 maps": (6, 10),
    "find, fused fp32 maps": (8, 13),
    "faces_of_few, 100 faces of 9 candidates": (22, 40),
    "faces_of_few, 7 faces of 57 candidates": (9, 16),
    "order_candidates, 4,000": (25, 40),
    "decode_candidates, 4,000": (4, 7),
    "overlap_candidates, 4,000": (50, 85),
    "faces_of_many, 100 faces of 40 candidates": (45, 85),
    "decode + NMS, fp16, 100 faces of 9 candidates": (35, 60),
    "decode + NMS, fp32, 100 faces of 9 candidates": (37, 65),
    "decode + NMS, fp16, 100 faces of 40 candidates": (140, 230),
    "decode + NMS, fp16, 7 faces of 57 candidates": (22, 36),
    "copy of the results to pinned memory": (8, 15),
}
PREDICTED_FOR = "NVIDIA H200"


def compare(name: str, median_us: float, device_name: str, *, full_size: bool) -> dict[str, object]:
    """The prediction beside a measured time, where there is one for this device and size."""
    if not full_size or PREDICTED_FOR not in device_name or name not in PREDICTED_US:
        return {"predicted_us": None, "of_prediction": None}
    least, most = PREDICTED_US[name]
    return {"predicted_us": [least, most], "of_prediction": median_us / ((least + most) / 2)}
