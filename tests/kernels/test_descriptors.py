"""Descriptors say where the samples are, and are laid out as the compiler of the kernels lays them out."""

import numpy as np
import pytest
from cuda_host import load
from random_frames import make_frame

from retinastream.errors import UsageError
from retinastream.kernels.descriptors import FACE_FLOATS, FRAME_DESCRIPTOR, describe_frames, pack_faces
from retinastream.kernels.sizing import Placement
from retinastream.types import PIXEL_FORMATS, Faces, Frame


def test_sizes_and_offsets_are_those_of_the_struct():
    assert FRAME_DESCRIPTOR.fields is not None
    out = np.full(len(FRAME_DESCRIPTOR.fields) + 1, -1, np.int32)
    load("preprocess.cu").launch("describe_layout", 1, 1, [out])
    offsets = [FRAME_DESCRIPTOR.fields[name][1] for name in FRAME_DESCRIPTOR.names]
    assert out.tolist() == [FRAME_DESCRIPTOR.itemsize, *offsets]


@pytest.mark.parametrize(
    ("name", "layout", "shifts", "sample"),
    [
        ("bgr24", 0, (0, 0), (1, 8, 0, 1.0)),
        ("gray", 1, (0, 0), (1, 8, 0, 1.0)),
        ("nv12", 3, (1, 1), (1, 8, 0, 1.0)),
        ("p010", 3, (1, 1), (2, 10, 6, 1 / 256)),
        ("yuv420p10", 2, (1, 1), (2, 10, 0, 1 / 4)),
        ("yuv422p", 2, (1, 0), (1, 8, 0, 1.0)),
        ("yuv444p10", 2, (0, 0), (2, 10, 0, 1 / 4)),
    ],
)
def test_formats_are_described_by_their_samples(name, layout, shifts, sample):
    frame = make_frame(name, 10, 6, row_padding=3, rotation=270)
    (record,) = describe_frames([frame])
    assert (record["layout"], (record["shift_x"], record["shift_y"])) == (layout, shifts)
    assert tuple(record[f] for f in ("sample_bytes", "bits", "low_bits", "code_values")) == sample
    assert record["quarter_turns"] == 3
    assert (record["width"], record["height"]) == (10, 6)
    assert (record["placed_width"], record["placed_height"]) == (6, 10)
    for k, plane in enumerate(frame.planes):
        assert record["planes"][k] == plane.ctypes.data
        assert record["pitches"][k] == plane.strides[0]


def test_placements_and_offsets_say_where_the_picture_goes():
    frame = make_frame("nv12", 10, 6)
    (record,) = describe_frames([frame], [Placement(10, 6, 5, 3, 32, 32)], offsets=[(7, 2)])
    assert [record[f] for f in ("placed_width", "placed_height", "left", "top")] == [5, 3, 7, 2]


class OnDevice:
    """An array as CuPy would present it."""

    def __init__(self, shape, typestr, address, strides=None):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (address, False), "strides": strides, "version": 3
        }  # fmt: skip


def test_device_arrays_are_taken_by_their_interface():
    planes = (OnDevice((4, 6), "|u1", 4096, (512, 1)), OnDevice((2, 3, 2), "|u1", 8192))
    (record,) = describe_frames([Frame(planes, PIXEL_FORMATS["nv12"], 6, 4)])
    assert record["planes"].tolist() == [4096, 8192, 0]
    assert record["pitches"].tolist() == [512, 6, 0]


def test_a_flipped_view_has_a_negative_pitch():
    frame = make_frame("gray", 5, 4)
    flipped = Frame((frame.planes[0][::-1],), frame.format, 5, 4)
    (record,) = describe_frames([flipped])
    assert record["pitches"][0] == -frame.planes[0].strides[0]
    assert record["planes"][0] == frame.planes[0][3:].ctypes.data


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        pytest.param((np.zeros((4, 6), np.uint8),), "1 planes; expected 2", id="a plane missing"),
        pytest.param((np.zeros((4, 6), np.uint8), np.zeros((2, 2, 2), np.uint8)), r"\(2, 3, 2\)", id="wrong shape"),
        pytest.param((np.zeros((4, 6), np.uint16), np.zeros((2, 3, 2), np.uint16)), "expected uint8", id="wrong type"),
        pytest.param(
            (np.zeros((4, 12), np.uint8)[:, ::2], np.zeros((2, 3, 2), np.uint8)), "adjacent", id="every second"
        ),
        pytest.param(([[0] * 6] * 4, np.zeros((2, 3, 2), np.uint8)), "given as list", id="no array"),
    ],
)
def test_planes_that_do_not_fit_their_format_are_refused(planes, message):
    with pytest.raises(UsageError, match=message):
        describe_frames([Frame(planes, PIXEL_FORMATS["nv12"], 6, 4)])


def test_samples_at_odd_addresses_are_refused():
    memory = np.zeros(100, np.uint8)
    odd = np.frombuffer(memory.data, np.uint16, 6, offset=1 - memory.ctypes.data % 2).reshape(1, 6)
    fmt = PIXEL_FORMATS["yuv444p10"]
    with pytest.raises(UsageError, match="whole samples"):
        describe_frames([Frame((odd, odd, odd), fmt, 6, 1)])


def test_sides_beyond_what_positions_can_count_are_refused():
    long = np.zeros((1, 32768), np.uint8)
    with pytest.raises(UsageError, match="32767"):
        describe_frames([Frame((long,), PIXEL_FORMATS["gray"], 32768, 1)])
    with pytest.raises(UsageError, match="40000x1"):
        describe_frames([make_frame("gray", 4, 1)], [Placement(4, 1, 40000, 1, 40000, 1)])


def test_a_placement_for_every_frame_is_needed():
    with pytest.raises(ValueError, match="zip"):
        describe_frames([make_frame("gray", 4, 1)] * 2, [Placement(4, 1, 4, 1, 4, 1)])


def faces_of(count):
    values = np.arange(count * 15, dtype=np.float32).reshape(count, 15)
    return Faces(values[:, :4], values[:, 4], values[:, 5:].reshape(-1, 5, 2))


def test_faces_are_packed_row_by_row_with_their_counts():
    rows, counts = pack_faces([faces_of(2), faces_of(0), faces_of(3)])
    assert rows.shape == (3, 3, FACE_FLOATS)
    assert counts.tolist() == [2, 0, 3]
    np.testing.assert_array_equal(rows[2, :, :15], np.arange(45).reshape(3, 15))
    assert (rows[0, 2:] == 0).all()
    assert pack_faces([faces_of(0)])[0].shape == (1, 1, FACE_FLOATS)
    assert pack_faces([faces_of(2)], most=7)[0].shape == (1, 7, FACE_FLOATS)
    with pytest.raises(UsageError, match="3 faces, but room is for 2"):
        pack_faces([faces_of(3)], most=2)
