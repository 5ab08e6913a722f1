"""Agreement of two detectors: questions answered by hand, and on a real clip."""

import json
import math

import numpy as np
import pytest

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.agreement import Rules, agreement
from retinastream.evaluation.media_predictions import find_media, predict_media, read_media_predictions
from retinastream.types import Faces


def faces(*rows, index=0, source="clip.mp4", landmark=None):
    """Faces of rows (x, y, side, score), best score first."""
    rows = sorted(rows, key=lambda row: -row[3])
    boxes = np.array([(x, y, x + s, y + s) for x, y, s, _ in rows], np.float32).reshape(-1, 4)
    points = np.repeat(boxes[:, None, :2], 5, axis=1) + (0 if landmark is None else landmark)
    scores = np.array([row[3] for row in rows], np.float32)
    return Faces(boxes, scores, points.astype(np.float32), source=source, index=index, width=640, height=480)


def test_found_missed_and_wrong_by_hand():
    reference = [faces((0, 0, 40, 0.9), (100, 0, 40, 0.8)), faces((0, 0, 50, 0.7), index=1)]
    judged = [faces((4, 0, 40, 0.6), (300, 0, 40, 0.95)), faces((0, 0, 50, 0.99), index=1)]
    result = agreement(reference, judged)
    assert (result.pictures, result.faces, result.found, result.wrong) == (2, 3, 2, 1)
    assert (result.recall, result.precision) == (2 / 3, 2 / 3)
    assert result.overlap == pytest.approx((36 / 44 + 1) / 2)
    # landmarks lie at the corner: 4 px apart on a face of 40, and 0
    assert result.landmarks.mean == pytest.approx(0.05)
    assert result.landmarks.faces == 2
    (wrong,) = result.wrong_faces
    assert (wrong.source, wrong.index, wrong.box) == ("clip.mp4", 0, (300, 0, 340, 40))
    assert wrong.score == pytest.approx(0.95)
    assert [missed.box for missed in result.missed_faces] == [(100, 0, 140, 40)]


def test_scores_of_both_have_limits_of_their_own():
    reference = [faces((0, 0, 40, 0.45), (100, 0, 40, 0.9))]
    judged = [faces((0, 0, 40, 0.62), (100, 0, 40, 0.4))]
    strict = agreement(reference, judged, Rules(score=0.6, reference_score=0.5))
    assert (strict.found, strict.wrong, strict.faces) == (0, 1, 1)
    lenient = agreement(reference, judged, Rules(score=0.6, reference_score=0.5, doubtful=0.3))
    assert (lenient.found, lenient.wrong, lenient.faces) == (0, 0, 1)
    low = agreement(reference, judged, Rules(score=0.3, reference_score=0.3))
    assert (low.found, low.wrong, low.faces) == (2, 0, 2)


def test_a_score_exactly_at_the_limit_counts():
    reference, judged = [faces((0, 0, 40, 0.5))], [faces((0, 0, 40, 0.5))]
    result = agreement(reference, judged)
    assert (result.found, result.faces, result.wrong) == (1, 1, 0)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        pytest.param(33, 31, (1, 1, 0), id="a face above the limit, found a little lower, is found"),
        pytest.param(31, 33, (0, 0, 0), id="a face below it, reported a little higher, is neither found nor wrong"),
        pytest.param(31, 31, (0, 0, 0), id="small faces do not count"),
        pytest.param(32, 32, (1, 1, 0), id="the limit itself counts"),
        pytest.param(None, 31, (0, 0, 0), id="a small report of nothing does not count"),
        pytest.param(None, 33, (0, 0, 1), id="a large report of nothing is wrong"),
        pytest.param(33, None, (0, 1, 0), id="a large face that is not reported is missed"),
    ],
)
def test_faces_of_a_height_and_more(theirs, ours, expected):
    reference = [faces(*([] if theirs is None else [(0, 0, theirs, 0.9)]))]
    judged = [faces(*([] if ours is None else [(0, 0, ours, 0.9)]))]
    result = agreement(reference, judged, Rules(min_height=32))
    assert (result.found, result.faces, result.wrong) == expected


def test_of_two_reports_on_one_face_the_weaker_is_wrong():
    result = agreement([faces((0, 0, 40, 0.9))], [faces((0, 0, 40, 0.7), (2, 0, 40, 0.8))])
    assert (result.found, result.wrong) == (1, 1)
    assert result.wrong_faces[0].score == pytest.approx(0.7)
    assert result.overlap == pytest.approx(38 / 42)


def test_overlaps_belong_to_the_pairs_that_match():
    """Three faces found in another order than they are listed."""
    reference = [faces((0, 0, 40, 0.9), (100, 0, 40, 0.8), (200, 0, 40, 0.7))]
    judged = [faces((200, 0, 40, 0.9), (104, 0, 40, 0.6), (0, 0, 40, 0.8))]
    assert agreement(reference, judged).overlap == pytest.approx((1 + 1 + 36 / 44) / 3)


def test_nothing_to_find_gives_no_numbers_and_still_json():
    result = agreement([Faces()], [Faces()])
    assert math.isnan(result.recall)
    assert math.isnan(result.precision)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["recall"] is None
    assert plain["landmarks"]["mean"] is None
    assert plain["rules"]["score"] == 0.5


def test_the_worst_are_named_first():
    judged = [faces((0, 0, 40, 0.6)), faces((0, 0, 40, 0.9), index=1), faces((0, 0, 40, 0.7), index=2)]
    result = agreement([faces(index=index) for index in range(3)], judged)
    assert [sighting.index for sighting in result.wrong_faces] == [1, 2, 0]


@pytest.mark.parametrize(
    ("reference", "judged", "says"),
    [
        ([faces()], [], "the reference has 1 pictures, the judged detections 0"),
        ([faces(index=0)], [faces(index=4)], "picture 0 of 640x480 where the judged detections have picture 4"),
    ],
)
def test_detections_of_other_pictures_are_refused(reference, judged, says):
    with pytest.raises(UsageError, match=says):
        agreement(reference, judged)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"score": 1.5}, "score is 1.5"),
        ({"doubtful": 0.7}, "doubtful is 0.7 and reference_score 0.5"),
        ({"iou": 0}, "iou is 0"),
        ({"min_height": -1}, "min_height is -1"),
        ({"min_height": math.inf}, "min_height is inf"),
    ],
)
def test_rules_that_no_question_has_are_refused(values, says):
    with pytest.raises(UsageError, match=says):
        Rules(**values)


class CountingDetector:
    """One face per frame, at the place of its index."""

    def stream(self, frames):
        for frame in frames:
            yield faces((frame.index, 0, 20, 0.9), index=frame.index, source=frame.source)


@pytest.fixture
def clip(tmp_path):
    from media.builders import write_video

    path = tmp_path / "clip.mp4"
    write_video(path, frames=7)
    return path


def test_a_video_is_run_through_with_progress(clip):
    seen = []
    found = predict_media(
        CountingDetector(), find_media(clip), stride=2, progress=lambda done, total: seen.append((done, total))
    )
    assert [one.index for one in found] == [0, 2, 4, 6]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(predict_media(CountingDetector(), find_media(clip), max_frames=3)) == 3


def test_a_folder_of_pictures_leaves_out_what_cannot_be_read(tmp_path, caplog):
    import cv2

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        cv2.imwrite(str(folder / name), np.zeros((20, 20, 3), np.uint8))
    (folder / "b.png").write_bytes(b"no picture")
    found = predict_media(CountingDetector(), find_media(folder))
    assert [one.index for one in found] == [0, 2]
    assert "b.png is left out" in caplog.text
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match="no picture could be read"):
        predict_media(CountingDetector(), find_media(folder))


def test_media_that_are_not_one_thing_are_refused(tmp_path, clip):
    with pytest.raises(InputError, match="no such file"):
        find_media(tmp_path / "none.mp4")
    (tmp_path / "clip2.mp4").write_bytes(clip.read_bytes())
    with pytest.raises(InputError, match="holds 2 inputs"):
        find_media(tmp_path)


def test_the_results_of_a_run_are_read_and_an_incomplete_one_is_refused(tmp_path):
    from retinastream.pipeline.sinks.jsonl import JsonlSink
    from retinastream.pipeline.sinks.sink import RunHeader

    path = tmp_path / "clip.faces.jsonl"
    sink = JsonlSink(path, RunHeader("clip.mp4", width=640, height=480))
    for index in range(3):
        sink.write(faces((index, 0, 20, 0.9), index=index), None)
    sink.close(complete=True, summary={})
    found = read_media_predictions(path)
    assert [one.index for one in found] == [0, 1, 2]
    whole = agreement(found, [faces((index, 0, 20, 0.9), index=index) for index in range(3)])
    assert (whole.found, whole.wrong) == (3, 0)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="is not complete"):
        read_media_predictions(path)


@pytest.mark.data
@pytest.mark.slow
def test_both_runtimes_agree_on_a_clip(data, real_model):
    pytest.importorskip("onnxruntime", reason="two runtimes are compared")
    from retinastream.pipeline.detector import Detector

    media = find_media(data / "videos" / "facenet_pytorch_video.mp4")
    found = []
    for runtime in ("openvino", "onnxruntime"):
        with Detector(real_model, size="fit:960", threshold=0.02, runtime=runtime, threads=2) as detector:
            found.append(predict_media(detector, media, stride=10))
    result = agreement(*found, Rules(min_height=32))
    assert result.pictures == 11
    assert result.faces > 40
    assert result.recall == result.precision == 1.0
    assert result.overlap > 0.99
    assert result.landmarks.mean < 0.01
