"""The usual way from decoded frames to network input and from head maps to faces, in torch and OpenCV.

Three fair versions of it: everything of every anchor to the host and NMS there, as scripts in circulation do; the
threshold on the device first; and NMS on the device too. Anchors are listed by tensor operations, not by the Python
loops of those scripts, which take several times as long.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from retinastream.models.spec import DetectorSpec

WAYS = ("host", "threshold on the device", "all on the device")


def list_anchors(spec: DetectorSpec, height: int, width: int, device: torch.device | str) -> Tensor:
    """All anchors (N, 3): centre x, centre y and size in pixels, in the classic order."""
    parts = []
    for (rows, columns), stride, sizes in zip(
        spec.feature_sizes(height, width), spec.strides, spec.anchor_sizes, strict=True
    ):
        y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) * stride
        size = torch.tensor(sizes, device=device)
        grid = torch.meshgrid(y, x, size, indexing="ij")
        parts.append(torch.stack([grid[1], grid[0], grid[2]], -1).reshape(-1, 3))
    return torch.cat(parts)


def decode_all(loc: Tensor, landms: Tensor, anchors: Tensor, spec: DetectorSpec) -> tuple[Tensor, Tensor]:
    """Offsets of all anchors of a batch to boxes (batch, N, 4) and landmarks (batch, N, 10), in pixels."""
    near, grow = spec.variances
    centres = anchors[:, :2] + loc[..., :2] * near * anchors[:, 2:]
    sizes = anchors[:, 2:] * torch.exp(loc[..., 2:] * grow)
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
    points = anchors[:, :2].repeat(1, 5) + landms * near * anchors[:, 2:]
    return boxes, points


def find_nms() -> tuple[Callable[[Tensor, Tensor, float], Tensor], str]:
    """The function that suppresses, torchvision's where it is installed, and what it is."""
    if importlib.util.find_spec("torchvision") is not None:
        from torchvision.ops import nms

        return nms, "torchvision.ops.nms"
    return loop_nms, "a loop in torch (torchvision is not installed)"


def loop_nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Greedy NMS, each kept box against all that are left: indices kept, best first."""
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        sides = torch.minimum(boxes[best, 2:], boxes[order, 2:]) - torch.maximum(boxes[best, :2], boxes[order, :2])
        shared = sides.clamp(min=0).prod(-1)
        order = order[shared <= iou * (area[best] + area[order] - shared)]
    return torch.stack(kept) if kept else order


@torch.inference_mode()
def usual_faces(
    outputs: Sequence[Tensor], spec: DetectorSpec, height: int, width: int, *, way: str, threshold: float, iou: float
) -> list[np.ndarray]:
    """Faces (n, 15) of each frame from loc, conf and landms of a batch: box, score, landmarks, on the host at last."""
    loc, conf, landms = outputs
    anchors = list_anchors(spec, height, width, loc.device)
    boxes, points = decode_all(loc.float(), landms.float(), anchors, spec)
    scores = conf[..., 1].float()
    if way == "host":
        boxes, points, scores = boxes.cpu(), points.cpu(), scores.cpu()
    nms, _ = find_nms()
    found = []
    for item in range(len(scores)):
        above = torch.nonzero(scores[item] >= threshold)[:, 0]
        rows = torch.cat([boxes[item, above], scores[item, above, None], points[item, above]], -1)
        if way == "threshold on the device":
            rows = rows.cpu()
        rows = rows[nms(rows[:, :4].contiguous(), rows[:, 4].contiguous(), iou)]
        found.append(rows.cpu().numpy())
    return found


def usual_input(
    frames: Sequence[np.ndarray], spec: DetectorSpec, height: int, width: int, device: torch.device | str
) -> Tensor:
    """Network input (batch, 3, height, width) from NV12 pictures (rows * 3 / 2, columns) on the host, one by one."""
    batch = []
    for picture in frames:
        bgr = cv2.cvtColor(picture, cv2.COLOR_YUV2BGR_NV12)
        values = bgr.astype(np.float32) - np.asarray(spec.mean, np.float32)
        whole = np.zeros((3, height, width), np.float32)
        whole[:, : bgr.shape[0], : bgr.shape[1]] = values.transpose(2, 0, 1)
        batch.append(torch.from_numpy(whole).to(device))
    return torch.stack(batch)
