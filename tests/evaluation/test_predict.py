"""Running a detector over picture files, and keeping what it found in files."""

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from retinastream.errors import InputError, ModelError, UsageError
from retinastream.evaluation.predict import list_pictures, predict
from retinastream.evaluation.prediction_files import from_rows, read_faces, to_rows, write_faces
from retinastream.evaluation.wider_pictures import find_pictures, predict_pictures, require_all
from retinastream.evaluation.wider_truth import EventTruth, GroundTruth, PictureTruth
from retinastream.pipeline.sinks.jsonl import JsonlSink, read_jsonl
from retinastream.pipeline.sinks.sink import RunHeader
from retinastream.types import Faces

Picture = npt.NDArray[np.uint8]


def write_picture(path: Path, value: int, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), value, np.uint8))
    return path


class BrightnessFinder:
    """Finds one face per picture, as wide as the picture is bright, and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, ...]]] = []

    def __call__(self, pictures: list[Picture]) -> list[Faces]:
        self.calls.append([p.shape for p in pictures])
        return [a_face(float(p[0, 0, 0])) for p in pictures]


def a_face(width: float) -> Faces:
    box = np.array([[0, 0, width, 1]], np.float32)
    return Faces(box, np.array([0.5], np.float32), np.zeros((1, 5, 2), np.float32))


def random_faces(count: int, rng: np.random.Generator) -> Faces:
    starts = rng.uniform(-20, 3000, (count, 2))
    boxes = np.column_stack([starts, starts + rng.uniform(1, 500, (count, 2))]).astype(np.float32)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1].copy()
    return Faces(boxes, scores, rng.uniform(-20, 3000, (count, 5, 2)).astype(np.float32), width=640, height=480)


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_results_are_in_the_order_of_the_files_whatever_is_batched(tmp_path: Path, batch: int) -> None:
    sizes = [(64, 48), (32, 32), (64, 48), (48, 64), (32, 32), (64, 48), (64, 48), (16, 16)]
    files = [write_picture(tmp_path / f"{n}.png", 10 * n, size) for n, size in enumerate(sizes)]
    finder = BrightnessFinder()
    seen: list[tuple[int, int]] = []
    results = predict(finder, files, batch=batch, progress=lambda done, total: seen.append((done, total)))
    assert [f.boxes[0, 2] for f in results] == [10 * n for n in range(8)]
    assert [f.source for f in results] == [str(file) for file in files]
    assert [(f.index, f.width, f.height) for f in results] == [(n, *size) for n, size in enumerate(sizes)]
    assert all(len(set(shapes)) == 1 and len(shapes) <= batch for shapes in finder.calls)
    assert seen[-1] == (8, 8)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_equal_sizes_go_together_although_others_are_between(tmp_path: Path) -> None:
    sizes = [(64, 48), (32, 32)] * 3
    finder = BrightnessFinder()
    predict(finder, [write_picture(tmp_path / f"{n}.png", n, size) for n, size in enumerate(sizes)], batch=3)
    assert sorted(len(call) for call in finder.calls) == [3, 3]


def test_pictures_of_ever_new_sizes_are_not_all_held(tmp_path: Path) -> None:
    files = [write_picture(tmp_path / f"{n}.png", n, (16 + n, 16)) for n in range(12)]
    at_call: list[int] = []
    opened: list[Path] = []

    class Watching(BrightnessFinder):
        def __call__(self, pictures: list[Picture]) -> list[Faces]:
            at_call.append(len(opened) - len(self.calls))
            return super().__call__(pictures)

    import retinastream.evaluation.predict as module

    read = module.read_picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_picture", lambda path: opened.append(path) or read(path))
        predict(Watching(), files, batch=2)
    assert max(at_call) <= 2 * 4


def test_pictures_of_other_sizes_that_went_ahead_leave_room_for_full_batches(tmp_path: Path) -> None:
    sizes = [(16 + n, 16) for n in range(8)] + [(64, 48)] * 6
    finder = BrightnessFinder()
    predict(finder, [write_picture(tmp_path / f"{n}.png", n, size) for n, size in enumerate(sizes)], batch=2)
    assert [len(call) for call in finder.calls if call[0] == (48, 64, 3)] == [2, 2, 2]


def test_missing_pictures_are_named_before_anything_runs(tmp_path: Path) -> None:
    files = [write_picture(tmp_path / "there.png", 1), *(tmp_path / f"gone{n}.png" for n in range(7))]
    finder = BrightnessFinder()
    with pytest.raises(InputError, match=r"7 of 8 pictures are not there: .*gone0\.png.*gone4\.png and 2 more"):
        predict(finder, files)
    assert not finder.calls


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predict(BrightnessFinder(), [tmp_path / "broken.jpg"])


def test_numbers_that_are_not_finite_are_the_models_fault(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a.png", 1)
    with pytest.raises(ModelError, match=r"a\.png: the model gave .* not a finite number"):
        predict(lambda pictures: [a_face(float("nan")) for _ in pictures], [file])


def test_values_and_results_of_wrong_number_are_refused(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a.png", 1)
    with pytest.raises(UsageError, match="batch is 0"):
        predict(BrightnessFinder(), [file], batch=0)
    with pytest.raises(UsageError, match="0 results for 1 pictures"):
        predict(lambda pictures: [], [file])
    assert predict(BrightnessFinder(), []) == []


def test_a_folder_is_listed_with_the_folders_in_it(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.png", "e/x.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [f.relative_to(tmp_path).as_posix() for f in list_pictures(tmp_path)] == ["b9.png", "b10.png", "e/x.jpg"]
    with pytest.raises(InputError, match="is not a folder"):
        list_pictures(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no pictures"):
        list_pictures(tmp_path / "empty")


NAMES = ["a.jpg", "e/b.jpg", "none.png"]


def test_jsonl_keeps_every_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [random_faces(30, rng), random_faces(1, rng), Faces()]
    path = tmp_path / "p.jsonl"
    write_faces(path, given, NAMES, RunHeader("set"))
    for again in (read_faces(path, NAMES), list(read_jsonl(path)[1])):
        for before, after in zip(given, again, strict=True):
            assert (before.boxes == after.boxes).all()
            assert (before.scores == after.scores).all()
            assert (before.landmarks == after.landmarks).all()
    with pytest.raises(UsageError, match="exists already"):
        write_faces(path, given, NAMES, RunHeader("set"))


def test_files_of_detect_are_read_by_the_end_of_their_paths(tmp_path: Path) -> None:
    path = tmp_path / "p.faces.jsonl"
    sink = JsonlSink(path, RunHeader("x", kind="images"))
    for index, (name, width) in enumerate([("e/b.jpg", 7.0), ("a.jpg", 5.0)]):
        face = a_face(width)
        sink.write(Faces(face.boxes, face.scores, face.landmarks, source=f"/data/set/{name}", index=index), None)
    sink.close(complete=True, summary={})
    result = read_faces(path, NAMES)
    assert [faces.boxes[:, 2].tolist() for faces in result] == [[5.0], [7.0], []]


def test_the_longest_name_at_the_end_of_a_path_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    names = ["b.jpg", "e/b.jpg"]
    face = a_face(3)
    write_faces(path, [face, Faces()], ["data/e/b.jpg", "data/b.jpg"], RunHeader("set"))
    assert [len(faces) for faces in read_faces(path, names)] == [0, 1]


def _records(*sources: str, kind: str = "images", end: bool = True) -> str:
    lines: list[object] = [{"type": "header", "schema_version": 1, "kind": kind}]
    lines += [{"type": "frame", "index": n, "pts": None, "source": s, "faces": []} for n, s in enumerate(sources)]
    lines += [{"type": "end", "complete": True}] if end else []
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (_records("x/a.jpg", "y/other.jpg"), UsageError, r"pictures that the set does not have: y/other\.jpg;"),
        (_records("x/a.jpg", "y/a.jpg"), UsageError, r"has the picture a\.jpg twice"),
        (_records("clip.mp4", kind="video"), InputError, "faces of a video"),
        (_records("a.jpg", end=False), InputError, "is not complete"),
        ("no json\n", InputError, "line 1: not a JSON record"),
    ],
)
def test_wrong_jsonl_is_refused(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(error, match=says):
        read_faces(tmp_path / "p.jsonl", NAMES)


def test_text_files_are_read_by_name_and_ranked(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "b.txt").write_text("b\n2\n1 2 3 4 0.25\n10 20 30 40 0.5\n")
    a, b, none = read_faces(tmp_path, NAMES)
    assert (len(a), len(none)) == (0, 0)
    assert b.boxes.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]
    assert b.scores.tolist() == [0.5, 0.25]
    assert np.isnan(b.landmarks).all()
    (tmp_path / "e" / "strange.txt").write_text("strange\n0\n")
    with pytest.raises(UsageError, match=r"does not have: e/strange;"):
        read_faces(tmp_path, NAMES)


def test_folders_and_files_without_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_faces(tmp_path / "absent", NAMES)
    with pytest.raises(InputError, match="has no predictions"):
        read_faces(tmp_path, NAMES)
    (tmp_path / "a.txt").write_text("a\n0\n")
    with pytest.raises(UsageError, match="differ only in their extension"):
        read_faces(tmp_path, ["a.jpg", "a.png"])


def test_rows_and_faces_are_the_same_boxes() -> None:
    faces = random_faces(200, np.random.default_rng(1))
    again = from_rows(to_rows(faces))
    assert (again.boxes == faces.boxes).all(), "widths of float32 corners are exact in float64"
    assert (again.scores == faces.scores).all()
    assert to_rows(a_face(4)).tolist() == [[0, 0, 4, 1, 0.5]]


def wider_truth() -> GroundTruth:
    def picture(name: str) -> PictureTruth:
        return PictureTruth(name, np.array([[1.0, 2, 30, 40]]), {s: np.array([0]) for s in ("easy", "medium", "hard")})

    return GroundTruth(
        (
            EventTruth("0--Parade", (picture("0_Parade_a"), picture("0_Parade_b"))),
            EventTruth("1--Riot", (picture("1_Riot_c"),)),
        )
    )


@pytest.mark.parametrize(
    "names", [("0--Parade/0_Parade_b.jpg", "1--Riot/1_Riot_c.png"), ("0_Parade_b.jpg", "1_Riot_c.jpg")]
)
def test_wider_pictures_are_found_in_event_folders_and_in_one_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    files = [write_picture(tmp_path / name, 9) for name in names]
    truth = wider_truth()
    found = find_pictures(tmp_path, truth)
    assert found == {("0--Parade", "0_Parade_b"): files[0], ("1--Riot", "1_Riot_c"): files[1]}
    with pytest.raises(InputError, match=r"1 of the 3 pictures .*: 0--Parade/0_Parade_a; .*--only-present"):
        require_all(found, truth, tmp_path)
    part = truth.only(found)
    assert part.names == list(found)
    assert (part.pictures, part.faces("hard")) == (2, 2)
    require_all(found, part, tmp_path)


def test_pictures_that_the_wider_truth_does_not_have_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "0--Parade" / "0_Parade_a.jpg", 1)
    write_picture(tmp_path / "0--Parade" / "1_Riot_c.jpg", 1)
    with pytest.raises(
        InputError, match=r"does not have .*0--Parade/1_Riot_c\.jpg; expected pictures of WIDER FACE val"
    ):
        find_pictures(tmp_path, wider_truth())
    (tmp_path / "0--Parade" / "1_Riot_c.jpg").rename(tmp_path / "0_Parade_a.png")
    with pytest.raises(InputError, match=r"are both 0--Parade/0_Parade_a"):
        find_pictures(tmp_path, wider_truth())


def test_wider_predictions_are_rows_and_other_widths_are_told(tmp_path: Path) -> None:
    write_picture(tmp_path / "0_Parade_b.png", 30, (1024, 16))
    write_picture(tmp_path / "1_Riot_c.png", 40, (416, 416))
    found = find_pictures(tmp_path, wider_truth())
    predictions, other = predict_pictures(BrightnessFinder(), found)
    assert {e: {p: rows.tolist() for p, rows in v.items()} for e, v in predictions.items()} == {
        "0--Parade": {"0_Parade_b": [[0, 0, 30, 1, 0.5]]},
        "1--Riot": {"1_Riot_c": [[0, 0, 40, 1, 0.5]]},
    }
    assert [file.name for file in other] == ["1_Riot_c.png"]
