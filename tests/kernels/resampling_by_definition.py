"""What preprocessing is defined to be, written as slowly and plainly as the definition reads, in float64.

Nothing here calls the code under test; the tests compare against it.
"""

import numpy as np

LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def stored_yuv(frame):
    """Y, U, V (height, width) in 8-bit code values, chroma replicated sample by sample; also B, G, R for bgr24."""
    fmt = frame.format
    unit = 2.0 ** (fmt.bits - 8 + fmt.shift)
    if fmt.name == "bgr24":
        return [frame.planes[0][..., c].astype(np.float64) for c in range(3)]
    y = frame.planes[0].astype(np.float64) / unit
    if fmt.name == "gray":
        return [y, np.full(y.shape, 128.0), np.full(y.shape, 128.0)]
    if fmt.interleaved_chroma:
        u, v = frame.planes[1][..., 0], frame.planes[1][..., 1]
    else:
        u, v = frame.planes[1:]
    rows = np.arange(frame.height) // fmt.sub_y
    columns = np.arange(frame.width) // fmt.sub_x
    return [y, *(plane[rows][:, columns].astype(np.float64) / unit for plane in (u, v))]


def bilinear_weights(source, target):
    """Weights (target, source): two nearest centres each, edges replicated."""
    weights = np.zeros((target, source))
    for i in range(target):
        position = (i + 0.5) * source / target - 0.5
        left = int(np.floor(position))
        share = position - left
        weights[i, min(max(left, 0), source - 1)] += 1 - share
        weights[i, min(max(left + 1, 0), source - 1)] += share
    return weights


def footprint_weights(source, target):
    """Weights (target, source): the share of the output pixel's footprint that each source pixel covers."""
    step = source / target
    weights = np.zeros((target, source))
    for i in range(target):
        begin, end = i * step, (i + 1) * step
        for j in range(int(begin), min(source, int(end) + 1)):
            weights[i, j] = max(0.0, min(end, j + 1) - max(begin, j)) / step
    return weights


def resampled(channels, width, height):
    """Resample planes (h, w) to (height, width) by the rule of the module's docstring."""
    h, w = channels[0].shape
    if (w, h) == (width, height):
        return channels
    weights = footprint_weights if w >= 2 * width or h >= 2 * height else bilinear_weights
    rows, columns = weights(h, height), weights(w, width)
    return [np.einsum("ij,lj->il", np.einsum("ij,jk->ik", rows, channel), columns) for channel in channels]


def bgr_of(yuv, matrix, full_range):
    """B, G, R (height, width, 3) in 0..255, not rounded, from the equations of the recommendations."""
    y, u, v = yuv
    kr, kb = LUMA_WEIGHTS[matrix]
    luma, cb, cr = (y, u - 128, v - 128) if full_range else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    if full_range:
        luma, cb, cr = luma / 255, cb / 255, cr / 255
    red = luma + 2 * (1 - kr) * cr
    blue = luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([blue, green, red], -1) * 255, 0, 255)


def picture_by_definition(frame, width, height):
    """The upright picture at (height, width), B, G, R in 0..255, not rounded."""
    turned = frame.rotation in (90, 270)
    channels = resampled(stored_yuv(frame), *((height, width) if turned else (width, height)))
    if frame.format.name == "bgr24":
        picture = np.stack(channels, -1)
    else:
        picture = bgr_of(channels, frame.matrix, frame.full_range)
    return np.rot90(picture, frame.rotation // 90)
