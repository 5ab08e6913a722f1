import struct

import cv2
import numpy as np
import pytest

from retinastream.errors import InputError
from retinastream.evaluation.picture_header import PictureHeader, read_header


def encoded(extension, width=37, height=21, params=(), channels=3):
    noise = np.random.default_rng(3).integers(0, 255, (height, width, channels), np.uint8)
    return cv2.imencode(extension, noise, list(params))[1].tobytes()


def with_exif(jpeg, orientation, order="<"):
    mark = b"II" if order == "<" else b"MM"
    # a directory of two entries, of which orientation is the second
    entries = struct.pack(order + "HHIHH", 0x0100, 3, 1, 9, 0) + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    tiff = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2) + entries + bytes(4)
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def decoded_size(content):
    height, width = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    return width, height


@pytest.mark.parametrize(
    "content",
    [
        encoded(".jpg"),
        encoded(".jpg", params=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        encoded(".jpg", params=(cv2.IMWRITE_JPEG_RST_INTERVAL, 1)),
        encoded(".jpg", channels=1),
        encoded(".jpg", width=1, height=1),
        encoded(".png"),
        encoded(".png", channels=4),
        encoded(".png", width=3000, height=2),
        encoded(".jpg") + b"something appended \xff\xd9 twice",
        encoded(".png") + b"something appended",
    ],
)
def test_the_size_is_that_of_the_decoded_picture(content):
    header = read_header(content)
    assert header is not None
    assert (header.width, header.height) == decoded_size(content)
    assert header.orientation == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_turns_the_size_as_the_decoder_does(orientation, order):
    content = with_exif(encoded(".jpg"), orientation, order)
    header = read_header(content)
    assert header == PictureHeader(*decoded_size(content), orientation)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_counts_as_upright(orientation):
    content = with_exif(encoded(".jpg"), orientation)
    assert read_header(content) == PictureHeader(*decoded_size(content), 1)


@pytest.mark.parametrize("keep", [14, 16, 24, 30])
def test_a_damaged_orientation_counts_as_upright(keep):
    exif = with_exif(encoded(".jpg"), 6)
    tiff = exif[6 + 6 : 6 + 6 + 38][: keep - 6]
    segment = b"Exif\0\0" + tiff
    jpeg = encoded(".jpg")
    content = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert read_header(content) == PictureHeader(37, 21, 1)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_files_that_are_cut_short_are_refused(extension, share):
    content = encoded(extension, 300, 200)
    with pytest.raises(InputError, match=r"cut short|without a header"):
        read_header(content[: int(len(content) * share)])


def test_every_length_of_a_cut_file_is_refused_and_none_raises_another_error():
    for content in (with_exif(encoded(".jpg"), 6), encoded(".png")):
        for length in range(8, len(content) - 8):
            with pytest.raises(InputError):
                read_header(content[:length])


def test_formats_that_only_a_decoder_knows_give_none():
    assert read_header(encoded(".bmp")) is None
    assert read_header(encoded(".webp")) is None
    assert read_header(b"") is None
    assert read_header(b"hello") is None


def test_bytes_between_segments_are_left_to_the_decoder():
    jpeg = encoded(".jpg")
    assert read_header(jpeg[:2] + b"junk" + jpeg[2:]) is None


def test_the_end_of_a_preview_inside_the_file_is_not_the_end_of_the_picture():
    jpeg = encoded(".jpg")
    preview = b"Exif\0\0" + encoded(".jpg", 8, 8)
    content = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + jpeg[2:]
    assert read_header(content) == PictureHeader(37, 21)
    with pytest.raises(InputError, match="cut short"):
        read_header(content[:-20])
