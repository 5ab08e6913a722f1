"""The detector as a user has it: known faces of a known picture, every way to call it, and what it refuses."""

import json
import logging
import threading

import numpy as np
import pytest

from retinastream.errors import ModelError, SetupError, UsageError
from retinastream.pipeline.detector import Detector
from retinastream.types import PIXEL_FORMATS, Faces, Frame

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")

RUNTIMES = ["openvino", "onnxruntime"]


def installed(runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    return runtime


def picture_of(seed=0, height=96, width=128):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one, other, pixels=0.01, score=1e-4):
    assert len(one) == len(other)
    np.testing.assert_allclose(one.scores, other.scores, atol=score)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=pixels)
    np.testing.assert_allclose(one.landmarks, other.landmarks, atol=pixels)


def overlap(box, other):
    sides = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None)
    areas = [np.prod(b[2:] - b[:2]) for b in (box, other)]
    return sides.prod() / (sum(areas) - sides.prod())


@pytest.fixture(scope="module")
def crowd(data):
    path = data / "stills" / "biubug6_curve_test.jpg"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return cv2.imread(str(path))


@pytest.fixture(scope="module")
def detector(real_model):
    with Detector(real_model, size="native", threads=2) as detector:
        yield detector


@pytest.fixture(scope="module")
def tiny(tiny_model):
    with Detector(tiny_model["fused"], size="native", threads=2, threshold=0.0, max_faces=40) as detector:
        yield detector


# --- a known picture -------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_known_faces_of_a_crowd_are_found(real_model, crowd, runtime):
    with Detector(real_model, size="native", threads=2, runtime=installed(runtime)) as detector:
        faces = detector(crowd)
    assert (faces.width, faces.height, faces.overflow) == (1024, 624, False)
    assert len(faces) == 28
    assert len(faces.above(0.9)) == 23
    assert faces.scores[0] == pytest.approx(0.9996, abs=1e-4)
    assert (np.diff(faces.scores) <= 0).all()
    inside = (faces.landmarks >= faces.boxes[:, None, :2]) & (faces.landmarks <= faces.boxes[:, None, 2:])
    assert inside[:23].mean() > 0.95
    left_eye, right_eye, nose, left_mouth, _ = faces.landmarks[:23].transpose(1, 0, 2)
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_eye[:, 1] < left_mouth[:, 1]).all()
    assert (nose[:, 1] < left_mouth[:, 1]).all()


@pytest.mark.data
def test_both_runtimes_find_the_same_faces(real_model, crowd):
    found = []
    for runtime in RUNTIMES:
        with Detector(real_model, size="native", threads=2, runtime=installed(runtime), threshold=0.3) as detector:
            found.append(detector(crowd))
    assert_same(*found, pixels=0.05, score=1e-3)


@pytest.mark.data
def test_the_classic_layout_finds_the_same_faces(data, real_model, detector, crowd, tmp_path):
    from retinastream.models.export import export_onnx

    path = export_onnx(data / "weights" / "mobilenet0.25_Final.pth", tmp_path / "classic.onnx", "classic")
    with Detector(path, size="native", threads=2) as classic:
        assert classic.spec.output_layout == "classic"
        assert_same(classic(crowd), detector(crowd), pixels=0.05, score=1e-3)


@pytest.mark.data
@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_finds_what_one_picture_at_a_time_finds(real_model, detector, crowd, batch):
    pictures = [crowd, crowd[:, ::-1], crowd[::-1], crowd[:600], crowd]
    with Detector(real_model, size="native", threads=2, batch=batch) as batched:
        for one, other in zip(batched(pictures), map(detector, pictures), strict=True):
            assert_same(one, other)


@pytest.mark.data
@pytest.mark.parametrize(("batch", "streams"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_a_stream_gives_the_faces_of_every_frame_in_order(real_model, detector, crowd, batch, streams):
    frames = [Frame.from_bgr(np.ascontiguousarray(np.roll(crowd, 40 * n, 1)), index=n, source="v") for n in range(5)]
    with Detector(real_model, size="native", threads=2, batch=batch, streams=streams) as other:
        streamed = list(other.stream(iter(frames)))
    assert [(f.index, f.source) for f in streamed] == [(n, "v") for n in range(5)]
    for faces, frame in zip(streamed, frames, strict=True):
        assert_same(faces, detector(frame))


@pytest.mark.data
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_stored_picture_that_must_be_turned_gives_the_boxes_of_the_upright_one(detector, crowd, rotation):
    stored = np.ascontiguousarray(np.rot90(crowd, -rotation // 90))
    height, width = stored.shape[:2]
    frame = Frame((stored,), PIXEL_FORMATS["bgr24"], width, height, full_range=True, rotation=rotation)
    faces = detector(frame)
    assert (faces.width, faces.height) == (1024, 624)
    assert_same(faces, detector(crowd), pixels=1.0, score=0.01)


@pytest.mark.data
@pytest.mark.parametrize("name", ["nv12", "yuv420p10", "p010"])
def test_the_same_picture_as_video_samples_gives_the_same_faces(detector, crowd, name):
    """Chroma of half resolution costs a little, so boxes may move by a few pixels."""
    height, width = crowd.shape[:2]
    i420 = cv2.cvtColor(crowd, cv2.COLOR_BGR2YUV_I420)  # BT.601, limited range
    y = i420[:height]
    u, v = i420[height:].reshape(2, height // 2, width // 2)
    fmt = PIXEL_FORMATS[name]
    planes = (y, np.stack([u, v], -1)) if fmt.interleaved_chroma else (y, u, v)
    planes = tuple(p.astype(fmt.dtype) << (fmt.bits - 8 + fmt.shift) for p in planes)
    faces = detector(Frame(planes, fmt, width, height, matrix="bt601"))
    expected = detector(crowd)
    best = [max(overlap(box, other) for other in faces.boxes) for box in expected.above(0.8).boxes]
    assert min(best) > 0.8
    assert abs(len(faces) - len(expected)) <= 2


@pytest.mark.data
def test_faces_at_a_reduced_size_lie_where_they_lie_at_native_size(real_model, detector, crowd):
    with Detector(real_model, size="fit:768", threads=2) as reduced:
        faces = reduced(crowd)
    assert (faces.width, faces.height) == (1024, 624)
    expected = detector(crowd)
    best = [max(overlap(box, other) for other in expected.boxes) for box in faces.above(0.9).boxes]
    assert len(best) > 10
    assert min(best) > 0.6


@pytest.mark.data
def test_the_pyramid_finds_a_face_beyond_the_largest_anchor(real_model, detector, crowd):
    """A crop of the picture enlarged until its face is far taller than 512 px."""
    face = detector(crowd).boxes[0]
    centre, side = (face[:2] + face[2:]) / 2, float((face[2:] - face[:2]).max())
    x1, y1 = (max(0, int(c - 1.2 * side)) for c in centre)
    x2, y2 = (int(c + 1.2 * side) for c in centre)
    scale = 1000 / side
    crop = cv2.resize(crowd[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    wanted = (face - np.array([x1, y1, x1, y1])) * scale
    assert wanted[3] - wanted[1] > 900

    def best_score(size):
        with Detector(real_model, size=size, threads=2, threshold=0.02) as other:
            faces = other(crop)
        hits = [s for s, b in zip(faces.scores, faces.boxes, strict=True) if overlap(b, wanted) > 0.5]
        return max(hits, default=0.0)

    native, pyramid = best_score("native"), best_score("pyramid")
    print(f"score of a face {wanted[3] - wanted[1]:.0f} px tall: native {native:.3f}, pyramid {pyramid:.3f}")
    assert pyramid > 0.9
    assert native < pyramid - 0.2


@pytest.mark.data
def test_the_pyramid_still_finds_what_native_finds(real_model, detector, crowd):
    with Detector(real_model, size="pyramid", threads=2) as pyramid:
        faces = pyramid(crowd)
    for box in detector(crowd).above(0.9).boxes:
        assert max(overlap(box, other) for other in faces.boxes) > 0.6


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        pytest.param(False, 0.652, id="boxes as decoded: what an independent plain implementation measured"),
        pytest.param(True, 0.6576, id="boxes clipped to the picture, as by default: measured here"),
    ],
)
def test_average_precision_on_photographs(data, real_model, capsys, clip, expected):
    """500 photographs of about 400x300 with hand-made boxes, most faces masked."""
    from retinastream.evaluation.average_precision import average_precision, recall_by_height

    folder = data / "facemask"
    listed = json.loads((folder / "boxes.json").read_text())
    predictions, truths = [], []
    settings = {"size": "native", "threads": 2, "threshold": 0.02, "iou": 0.4, "clip": clip}
    with Detector(real_model, **settings) as detector:
        for name, entry in listed.items():
            faces = detector(cv2.imread(str(folder / "images" / name)))
            predictions.append((faces.boxes, faces.scores))
            truths.append(np.array(entry["boxes"], np.float64).reshape(-1, 4))
    result = average_precision(predictions, truths, 0.5)
    heights = recall_by_height(predictions, truths, (0, 8, 16, 32, 64, 128, np.inf), 0.5)
    with capsys.disabled():
        print(
            f"\nAP50 {result.ap:.4f} on {len(listed)} pictures, {result.truths} faces; recall at score 0.5 by height:"
        )
        bounds = zip(heights.edges[:-1], heights.edges[1:], strict=True)
        for (low, high), recall, count in zip(bounds, heights.recall, heights.truths, strict=True):
            print(f"  {low:4.0f} to {high:4.0f} px: {recall:.3f} of {count}")
    assert result.ap == pytest.approx(expected, abs=0.003)


# --- ways to call it, with any weights -------------------------------------------------------------------------------


def test_one_picture_gives_faces_and_several_give_a_list(tiny):
    image = picture_of()
    faces = tiny(image)
    assert isinstance(faces, Faces)
    assert 0 < len(faces) <= 40
    several = tiny([image, Frame.from_bgr(image, index=9, source="x")])
    assert [type(f) for f in several] == [Faces, Faces]
    assert [(f.index, f.source) for f in several] == [(0, ""), (9, "x")]
    for one in (*several, tiny((image,))[0]):
        assert_same(one, faces)


@pytest.mark.parametrize("batch", [1, 2, 4], ids=lambda n: f"batches of {n}")
def test_pictures_of_a_list_are_numbered_and_may_differ_in_size(tiny_model, tiny, batch):
    sizes = [(96, 128), (64, 64), (64, 64), (64, 64), (33, 47), (96, 128)]
    pictures = [picture_of(n, *size) for n, size in enumerate(sizes)]
    with Detector(tiny_model["fused"], size="native", threads=2, threshold=0.0, max_faces=40, batch=batch) as detector:
        found = detector(pictures)
        streamed = list(detector.stream(Frame.from_bgr(p, index=n) for n, p in enumerate(pictures)))
    for several in (found, streamed):
        assert [(f.index, f.height, f.width) for f in several] == [(n, *size) for n, size in enumerate(sizes)]
        for faces, picture in zip(several, pictures, strict=True):
            np.testing.assert_allclose(faces.scores, tiny(picture).scores, atol=1e-4)


def test_no_pictures_give_no_results(tiny):
    assert tiny([]) == []
    assert list(tiny.stream([])) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (31, 33)], ids=lambda s: f"{s[1]}x{s[0]}")
def test_pictures_of_any_size_are_taken(tiny, size):
    faces = tiny(picture_of(0, *size))
    assert (faces.height, faces.width) == size
    assert (faces.boxes[:, 2:] <= [size[1], size[0]]).all()
    assert (faces.boxes >= 0).all()


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        pytest.param("photo.jpg", "given as str; expected a uint8 BGR array", id="a path"),
        pytest.param(None, "given as NoneType", id="nothing, as cv2.imread returns"),
        pytest.param(np.zeros((4, 4)), r"given as float64 \(4, 4\)", id="a float array"),
        pytest.param(np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)", id="a grey picture"),
        pytest.param([np.zeros((4, 4, 4), np.uint8)], r"uint8 \(4, 4, 4\)", id="a list with an alpha channel"),
        pytest.param([None], "given as NoneType", id="a list with nothing in it"),
        pytest.param((n for n in ()), r"generator.*detector\.stream\(open_video", id="a generator"),
    ],
)
def test_what_is_no_picture_is_refused(tiny, pictures, says):
    with pytest.raises(UsageError, match=says):
        tiny(pictures)


def test_frames_keep_their_identity(tiny):
    from fractions import Fraction

    frame = Frame.from_bgr(picture_of(), index=12, source="clip")
    frame.pts, frame.time_base, frame.corrupt, frame.interlaced = 250, Fraction(1, 100), True, True
    faces = tiny(frame)
    assert (faces.index, faces.source, faces.pts, faces.corrupt, faces.interlaced) == (12, "clip", 2.5, True, True)


def test_more_faces_than_wanted_are_cut_and_said(tiny_model, caplog):
    with Detector(tiny_model["fused"], size="native", threads=2, threshold=0.0, iou=1.0, max_faces=3) as detector:
        faces = detector(picture_of())
        detector(picture_of(1))
    assert (len(faces), faces.overflow) == (3, True)
    assert caplog.text.count("or more faces than max_faces") == 1
    assert detector.backend.log.frames["overflow"] == 2


def test_leaving_a_stream_early_ends_its_threads(tiny):
    closed = threading.Event()

    def endless():
        try:
            n = 0
            while True:
                yield Frame.from_bgr(picture_of(n % 3), index=n)
                n += 1
        finally:
            closed.set()

    stream = tiny.stream(endless())
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert closed.wait(10)
    assert [t.name for t in threading.enumerate() if t.name.startswith("retinastream-")] == []


def test_an_error_of_the_source_reaches_the_reader_of_the_stream_after_the_frames_before_it(tiny):
    def broken():
        yield Frame.from_bgr(picture_of())
        raise OSError("the camera is gone")

    seen = []
    with pytest.raises(OSError, match="camera is gone"):
        seen.extend(faces.index for faces in tiny.stream(broken()))
    stream = tiny.stream(broken())
    assert next(stream).index == 0
    with pytest.raises(OSError, match="camera is gone"):
        next(stream)


def test_several_threads_may_share_a_detector(tiny):
    pictures = [picture_of(n, 64 + 32 * n, 96) for n in range(3)]
    expected, failures = [tiny(p) for p in pictures], []

    def work(number):
        try:
            for _ in range(8):
                assert_same(tiny(pictures[number]), expected[number])
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []


def test_buffers_of_old_sizes_are_let_go(tiny):
    for n in range(12):
        tiny(picture_of(0, 32 + 32 * n, 64))
    assert len(tiny.backend.slots._idle) <= 4


def test_size_auto_says_what_it_chose(tiny_model, caplog):
    with caplog.at_level(logging.WARNING), Detector(tiny_model["fused"], threads=1) as detector:
        assert str(detector.size) == "fit:1280"
    assert "fit:1280" in caplog.text
    assert "native" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), Detector(tiny_model["fused"], size="native", threads=1):
        pass
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        pytest.param(
            {"threshold": 1.5}, UsageError, "threshold 1.5 is out of range; allowed is 0 to 1", id="threshold"
        ),
        pytest.param({"threshold": float("nan")}, UsageError, "threshold nan", id="a threshold that is no number"),
        pytest.param({"threshold": "0.5"}, UsageError, "threshold '0.5'", id="a threshold as text"),
        pytest.param({"iou": -0.1}, UsageError, "iou -0.1 is out of range", id="a negative overlap"),
        pytest.param({"max_faces": 0}, UsageError, "max_faces 0 is out of range", id="no face at all"),
        pytest.param({"batch": 65}, UsageError, "allowed is whole numbers 1 to 64", id="a huge batch"),
        pytest.param({"batch": True}, UsageError, "batch True", id="a batch of yes"),
        pytest.param({"batch": 1.5}, UsageError, "batch 1.5", id="a batch and a half, which would never be full"),
        pytest.param({"max_faces": 2.5}, UsageError, "max_faces 2.5", id="half a face"),
        pytest.param({"size": "4k"}, UsageError, "size '4k' is not known; allowed are native", id="an unknown size"),
        pytest.param({"runtime": "tvm"}, UsageError, "allowed are auto, openvino", id="an unknown runtime"),
        pytest.param({"device": "cuda"}, SetupError, "--device cpu", id="a GPU"),
        pytest.param({"model": "mnet999"}, ModelError, "mnet999", id="an unknown model"),
        pytest.param(
            {"model": "no/such/file.onnx"}, ModelError, "no/such/file.onnx does not exist", id="a missing file"
        ),
    ],
)
def test_values_that_are_not_allowed_are_refused(tiny_model, values, error, says):
    given = {"model": tiny_model["fused"], "size": "native", **values}
    with pytest.raises(error) as caught:
        Detector(given.pop("model"), **given)
    assert says in str(caught.value)


# --- models of one size, and what is refused -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed_model(tiny_model, tmp_path_factory):
    """The tiny network as others export it: one picture of 160x96, classic outputs."""
    import onnx

    model = onnx.load(tiny_model["classic"])
    for place, size in enumerate((1, 3, 96, 160)):
        dimension = model.graph.input[0].type.tensor_type.shape.dim[place]
        dimension.Clear()
        dimension.dim_value = size
    path = tmp_path_factory.mktemp("fixed") / "fixed.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_model_of_one_size_gets_pictures_fitted_and_padded(fixed_model, tiny_model, runtime, caplog):
    image = picture_of(0, 150, 300)
    with Detector(fixed_model, runtime=runtime, threshold=0.4) as fixed:
        assert str(fixed.size) == "fit:160"
        assert "160x96" in caplog.text
        faces = fixed(image)
    with Detector(tiny_model["classic"], runtime=runtime, size="fit:160", threshold=0.4) as dynamic:
        assert_same(faces, dynamic(image))


def test_model_of_one_size_refuses_what_does_not_fit(fixed_model):
    with (
        Detector(fixed_model, size="native") as detector,
        pytest.raises(UsageError, match=r"160x96 only.*--size fit:96"),
    ):
        detector(picture_of(0, 150, 300))
    with pytest.raises(ModelError, match="batches of 1 only, and 4"):
        Detector(fixed_model, batch=4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda d: d(np.zeros((0, 5, 3), np.uint8)), "not empty", id="an empty picture"),
        pytest.param(lambda d: d.stream("clip.mp4"), "open_video", id="a path to stream"),
        pytest.param(lambda d: d.stream(7), "open_video", id="a number to stream"),
        pytest.param(lambda d: list(d.stream([np.zeros((4, 4))])), "uint8 array", id="a float picture in a stream"),
    ],
)
def test_wrong_pictures_are_refused_in_words(tiny, call, says):
    with pytest.raises(UsageError, match=says):
        call(tiny)


def test_stream_takes_plain_pictures(tiny):
    images = [picture_of(1, 64, 64), picture_of(2, 64, 96)]
    for streamed, alone in zip(tiny.stream(images), (tiny(i) for i in images), strict=True):
        assert_same(streamed, alone)


def test_closed_detector_says_so(tiny_model):
    detector = Detector(tiny_model["fused"], size="native")
    detector.close()
    with pytest.raises(UsageError, match="closed"):
        detector(picture_of())


@pytest.mark.parametrize("size", [None, 1280, "fit:1280px"])
def test_size_that_is_no_policy_is_refused(tiny_model, size):
    with pytest.raises(UsageError, match="size"):
        Detector(tiny_model["fused"], size=size)
