"""Brightness, contrast, saturation and hue as one matrix, so that a picture is recoloured in one pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# NTSC luma and chroma; rows are Y, I, Q and columns R, G, B. Hue turns the plane of I and Q and leaves Y alone.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_BGR = np.eye(3)[::-1]


def colour_matrix(
    *, brightness: float = 0.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> npt.NDArray[np.float32]:
    """Matrix (3, 4) float32 that leads from (B, G, R, 1), samples 0..255, to B, G, R.

    ``contrast`` multiplies all samples, ``saturation`` the distance from gray (0 makes gray), ``hue`` turns colours by
    degrees, and ``brightness`` is added last. The result may leave 0..255; whoever applies it limits the samples.
    """
    angle = np.deg2rad(hue)
    turn = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    chroma = np.eye(3)
    chroma[1:, 1:] = turn
    linear = contrast * _BGR @ np.linalg.inv(_YIQ) @ chroma @ _YIQ @ _BGR
    return np.concatenate([linear, np.full((3, 1), brightness)], axis=1).astype(np.float32)
