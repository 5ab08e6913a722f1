"""Drawing, and annotated pictures in a folder: right names, right formats, never over the source."""

import cv2
import numpy as np
import pytest

from retinastream.errors import OutputError, UsageError
from retinastream.pipeline.sinks.draw import choose_pen, draw, score_colour
from retinastream.pipeline.sinks.images import AnnotatedImagesSink
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces, Frame

HEADER = RunHeader("photos", kind="images")


def one_face(box, score=0.99, source=""):
    x1, y1, x2, y2 = box
    places = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    corners = [[x1 + (x2 - x1) * u, y1 + (y2 - y1) * v] for u, v in places]
    return Faces(
        np.array([box], np.float32), np.array([score], np.float32), np.array([corners], np.float32), source=source
    )


@pytest.mark.parametrize(("long_side", "line"), [(3840, 6), (1920, 3), (640, 1), (64, 1), (16384, 26)])
def test_line_grows_with_the_picture(long_side, line):
    assert choose_pen(long_side, long_side / 4).line == line


def test_line_is_thinner_on_small_faces():
    widths = [choose_pen(3840, side).line for side in (8, 24, 48, 200)]
    assert widths == sorted(widths)
    assert widths[0] == 2
    assert widths[-1] == 6


def test_colour_follows_the_score():
    assert [score_colour(s) for s in (0.0, 0.5, 0.75, 1.0)] == [(0, 0, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0)]


@pytest.mark.parametrize("background", [0, 128, 255])
def test_box_landmarks_and_score_are_visible_on_any_background(background):
    image = np.full((1080, 1920, 3), background, np.uint8)
    draw(image, one_face((500, 400, 700, 660)))
    green = score_colour(0.99)
    assert (np.abs(image[500, 498:503].astype(int) - green).max(1) == 0).any()
    for x, y in ((560, 504), (640, 504), (600, 556), (570, 608), (630, 608)):
        assert tuple(image[y, x].tolist()) == green
    label = image[370:398, 500:560]
    assert (label == green).all(2).sum() > 100
    assert (label.max(2) < 60).sum() > 50
    assert (image[410:490, 510:690] == background).all()


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((0, 0, 320, 240), id="the whole picture"),
        pytest.param((-50, -50, 30, 30), id="beyond the top left"),
        pytest.param((300, 220, 400, 300), id="beyond the bottom right"),
        pytest.param((100, 0, 160, 60), id="no room above"),
        pytest.param((1e9, 1e9, 2e9, 2e9), id="far outside"),
    ],
)
def test_plate_of_the_text_stays_inside_the_picture(box, monkeypatch):
    plates, rectangle = [], cv2.rectangle

    def watch(image, first, last, colour, thickness):
        if thickness == cv2.FILLED:
            plates.append((*first, *last))
        return rectangle(image, first, last, colour, thickness)

    monkeypatch.setattr(cv2, "rectangle", watch)
    image = np.zeros((240, 320, 3), np.uint8)
    draw(image, one_face(box))
    ((left, top, right, bottom),) = plates
    assert 0 <= left < right < 320
    assert 0 <= top < bottom < 240
    assert (image[top : bottom + 1, left] == score_colour(0.99)).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2)])
def test_tiny_picture_does_not_fail(size):
    image = np.zeros((*size, 3), np.uint8)
    draw(image, one_face((0, 0, 1, 1)))
    assert image.any()


def test_faces_that_are_not_finite_are_not_drawn():
    image = np.zeros((64, 64, 3), np.uint8)
    draw(image, one_face((10, 10, np.nan, 40)))
    assert not image.any()


def test_other_arrays_are_refused():
    with pytest.raises(UsageError, match=r"float32 \(4, 4\); expected uint8 \(height, width, 3\)"):
        draw(np.zeros((4, 4), np.float32), Faces())


def picture(tmp_path, name, size=(80, 60)):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((size[1], size[0], 3), (40, 90, 160), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix if path.suffix in (".jpg", ".png", ".webp") else ".png", image)[1])
    return path, Frame.from_bgr(image, source=str(path))


def written(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_names_and_formats_are_those_of_the_source(tmp_path):
    root = tmp_path / "photos"
    names = ["a.jpg", "sub dir/ä.png", "b.WEBP", "c.heic"]
    out = tmp_path / "photos.annotated"
    sink = AnnotatedImagesSink(out, HEADER, source_root=root)
    for name in names:
        path, frame = picture(root, name)
        before = path.read_bytes()
        sink.write(one_face((20, 15, 60, 50), source=str(path)), frame)
        assert path.read_bytes() == before
        assert (frame.planes[0] == (40, 90, 160)).all()
    sink.close(complete=True, summary={})
    assert written(out) == ["a.jpg", "b.WEBP", "c.heic.png", "sub dir/ä.png"]
    for name, magic in (("a.jpg", b"\xff\xd8"), ("sub dir/ä.png", b"\x89PNG"), ("b.WEBP", b"RIFF")):
        assert (out / name).read_bytes().startswith(magic)
    shown = cv2.imdecode(np.fromfile(out / "c.heic.png", np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (60, 80, 3)
    assert (shown != (40, 90, 160)).any()
    assert tuple(shown[-1, -1]) == (40, 90, 160)


def test_same_names_from_several_folders_are_kept_apart(tmp_path):
    sink = AnnotatedImagesSink(tmp_path / "out", HEADER)
    for name in ("a/x.png", "b/x.png", "c/X.png", "../x_2.png"):
        _, frame = picture(tmp_path / "in" / "deep", name)
        sink.write(Faces(source=frame.source), frame)
    assert written(tmp_path / "out") == ["X_3.png", "x.png", "x_2.png", "x_2_2.png"]


def test_folder_that_holds_something_needs_overwrite(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    AnnotatedImagesSink(out, HEADER)
    (out / "a.png").write_text("old")
    (out / "other.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty.*--overwrite"):
        AnnotatedImagesSink(out, HEADER)
    _, frame = picture(tmp_path / "in", "a.png")
    AnnotatedImagesSink(out, HEADER, overwrite=True).write(Faces(source=frame.source), frame)
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "other.txt").read_text() == "mine"


def test_picture_never_replaces_its_source(tmp_path):
    path, frame = picture(tmp_path, "a.png")
    before = path.read_bytes()
    sink = AnnotatedImagesSink(tmp_path, HEADER, overwrite=True)
    with pytest.raises(UsageError, match="would replace its own source"):
        sink.write(Faces(source=str(path)), frame)
    assert path.read_bytes() == before


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        AnnotatedImagesSink(tmp_path / "out", HEADER, overwrite=True)


def test_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        AnnotatedImagesSink(tmp_path / "file" / "out", HEADER)


def test_picture_too_large_for_its_format_is_an_output_error(tmp_path):
    image = np.zeros((1, 70000, 3), np.uint8)
    sink = AnnotatedImagesSink(tmp_path / "out", HEADER)
    with pytest.raises(OutputError, match=r"cannot write .*a\.jpg"):
        sink.write(Faces(), Frame.from_bgr(image, source="a.jpg"))
    assert written(tmp_path / "out") == []
