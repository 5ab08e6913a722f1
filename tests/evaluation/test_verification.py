"""Verification measures: against brute force over all thresholds, and against cases computed by hand."""

import json
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinastream.errors import InputError, UsageError
from retinastream.evaluation.face_features import choose_face, embed_pictures, similarities, verify
from retinastream.evaluation.face_pairs import MOST_PAIRS, FacePairs, read_pairs
from retinastream.evaluation.verification import pairs_to_resolve, verification_curve
from retinastream.kernels.align import template
from retinastream.types import Faces

# ------------------------------------------------------------------ measures


def accepted(values, threshold):
    return sum(1 for v in values if v >= threshold)


def slow_points(values, same):
    """(threshold, FAR, TAR) of every similarity as a threshold, highest first, and of accepting nothing."""
    s = [v for v, f in zip(values, same, strict=True) if f]
    d = [v for v, f in zip(values, same, strict=True) if not f]
    thresholds = [inf, *sorted({v for v in values if v != -inf}, reverse=True)]
    return [(t, accepted(d, t) / len(d), accepted(s, t) / len(s)) for t in thresholds]


def slow_at_far(values, same, far):
    """Go down with the threshold for as long as the FAR allows it."""
    best = None
    for point in slow_points(values, same):
        if point[1] <= far:
            best = point
    return best


def slow_auc(values, same):
    s = [v for v, f in zip(values, same, strict=True) if f]
    d = [v for v, f in zip(values, same, strict=True) if not f]
    return sum((a > b) + 0.5 * (a == b) for a in s for b in d) / (len(s) * len(d))


def slow_eer(values, same):
    """Follow the polygon of the ROC curve until FAR = 1 - TAR."""
    points = [(far, tar) for _, far, tar in slow_points(values, same)] + [(1.0, 1.0)]
    for (far0, tar0), (far1, tar1) in pairwise(points):
        before, after = far0 + tar0 - 1, far1 + tar1 - 1
        if after >= 0:
            return far0 + (far1 - far0) * (-before) / (after - before)
    raise AssertionError


def slow_accuracy(values, same):
    best = (-1.0, inf)
    for threshold, _, _ in slow_points(values, same):
        right = sum((v >= threshold) == bool(f) for v, f in zip(values, same, strict=True))
        if right / len(values) >= best[0]:
            best = (right / len(values), threshold)
    return best


def random_pairs(seed):
    """Similarities with many ties and some pairs that could not be compared."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 60))
    same = rng.random(count) < rng.uniform(0.1, 0.9)
    same[:2] = True, False
    values = np.round(rng.normal(size=count) + same, int(rng.integers(0, 3)))
    values[rng.random(count) < rng.choice([0, 0.3])] = -np.inf
    return values, same


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), far=st.sampled_from([1e-4, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0]))
def test_every_measure_is_that_of_brute_force(seed, far):
    values, same = random_pairs(seed)
    curve = verification_curve(values, same)
    expected = slow_points(values.tolist(), same.tolist())
    np.testing.assert_array_equal(np.column_stack([curve.thresholds, curve.far, curve.tar]), expected)
    point = curve.at_far(far)
    assert (point.threshold, point.far, point.tar) == slow_at_far(values.tolist(), same.tolist(), far)
    assert curve.auc == pytest.approx(slow_auc(values, same), abs=1e-12)
    assert curve.eer == pytest.approx(slow_eer(values, same), abs=1e-12)
    assert curve.best_accuracy == pytest.approx(slow_accuracy(values, same))


def test_a_case_computed_by_hand():
    #            same: .9  .8       .5  .3       different: .6  .5  .2  .1
    values, same = [0.9, 0.8, 0.5, 0.3, 0.6, 0.5, 0.2, 0.1], [1, 1, 1, 1, 0, 0, 0, 0]
    curve = verification_curve(values, same)
    none, one, two = curve.at_far(0.2), curve.at_far(0.25), curve.at_far(0.5)
    assert (none.threshold, none.far, none.tar, none.resolved) == (0.8, 0.0, 0.5, False)
    assert (one.threshold, one.far, one.tar, one.resolved) == (0.6, 0.25, 0.5, True)
    # At 0.5 a same and a different pair are accepted together; 0.3 adds another same pair at no cost.
    assert (two.threshold, two.far, two.tar) == (0.3, 0.5, 1.0)
    # Of 16 comparisons .9 and .8 win 4 each, .5 wins 2 and a half, .3 wins 2.
    assert curve.auc == 12.5 / 16
    # From (0.25, 0.5) to (0.5, 0.75) the ROC curve meets FAR = 1 - TAR at 0.375.
    assert curve.eer == 0.375
    assert curve.best_accuracy == (0.75, 0.3)


def test_perfect_and_worthless_and_reversed_similarities():
    same = [True] * 3 + [False] * 4
    perfect = verification_curve([3, 2, 2, 1, 1, 0, 0], same)
    assert (perfect.at_far(1e-9).tar, perfect.auc, perfect.eer, perfect.best_accuracy) == (1.0, 1.0, 0.0, (1.0, 2.0))
    equal = verification_curve([5] * 7, same)
    assert (equal.at_far(0.99).tar, equal.at_far(1.0).tar, equal.auc, equal.eer) == (0.0, 1.0, 0.5, 0.5)
    assert equal.at_far(0.99).threshold == inf
    backwards = verification_curve([0, 0, 0, 1, 1, 1, 1], same)
    assert (backwards.auc, backwards.eer, backwards.best_accuracy) == (0.0, 1.0, (4 / 7, inf))


def test_pairs_that_could_not_be_compared_are_never_accepted_and_stay_in_the_denominators():
    curve = verification_curve([0.9, -inf, 0.1, -inf], [1, 1, 0, 0])
    assert curve.at_far(1.0).tar == 0.5
    assert curve.at_far(1.0).far == 0.5
    nothing = verification_curve([-inf, -inf], [1, 0])
    assert (nothing.at_far(1.0).tar, nothing.auc) == (0.0, 0.5)


@pytest.mark.parametrize(("far", "different", "resolved"), [(1e-3, 1000, True), (1e-3, 999, False), (0.5, 2, True)])
def test_a_far_is_resolved_when_one_pair_does_not_exceed_it(far, different, resolved):
    curve = verification_curve(np.linspace(1, 0, different + 1), np.arange(different + 1) == 0)
    assert curve.at_far(far).resolved is resolved
    assert (pairs_to_resolve(far) <= different) is resolved


def test_pairs_needed_for_a_far_are_whole_numbers():
    assert [pairs_to_resolve(far) for far in (1.0, 0.3, 1e-1, 1e-3, 1e-6)] == [1, 4, 10, 1000, 1_000_000]


def test_large_sets_take_no_more_memory_than_their_pairs():
    rng = np.random.default_rng(0)
    values, same = rng.normal(size=300_000), rng.random(300_000) < 0.01
    curve = verification_curve(values + 3 * same, same)
    assert curve.at_far(1e-3).far <= 1e-3
    assert 0.4 < curve.at_far(1e-3).tar < 0.55  # a normal distribution moved by 3: P(z > 3.09 - 3) = 0.46


def test_points_are_json():
    curve = verification_curve([0.5, 0.6], [1, 0])
    written = json.loads(json.dumps(curve.at_far(0.5).to_dict()))
    assert written == {"wanted_far": 0.5, "threshold": None, "far": 0.0, "tar": 0.0, "resolved": False}


@pytest.mark.parametrize(
    ("values", "same", "words"),
    [
        ([1, 2, 3], [1, 0], r"shapes \(3,\) and \(2,\)"),
        ([1, np.nan], [1, 0], "NaN"),
        ([1, np.inf], [1, 0], "NaN"),
        ([1, 2], [1, 1], "2 pairs are of one person and 0 of two"),
        ([1, 2], [0, 0], "0 pairs are of one person"),
        ([], [], "expected at least one of each"),
        ([1, 2], [2, 0], "other values than 0 and 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(values, same, words):
    with pytest.raises(UsageError, match=words):
        verification_curve(values, same)


@pytest.mark.parametrize("far", [0, -1, 1.5, float("nan"), "1e-3"])
def test_a_far_outside_its_range_is_refused(far):
    with pytest.raises(UsageError, match="FAR"):
        verification_curve([1, 0], [1, 0]).at_far(far)


# ------------------------------------------------------------------ lists of pairs


@pytest.fixture
def pictures(tmp_path):
    """Make files that exist; nothing reads them."""

    def make(*names):
        for name in names:
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path / "pictures"

    return make


def listing(folder, text, name="pairs.txt"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def plain(pairs):
    rows = zip(pairs.first, pairs.second, pairs.same, strict=True)
    return [(pairs.names[a], pairs.names[b], bool(s)) for a, b, s in rows]


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg b.jpg 1\na.jpg c/d.png 0\n",
        "# ours\n\n  a.jpg\tb.jpg\t1  \na.jpg\tc/d.png\t0",
        'file1,file2,same\na.jpg,b.jpg,1\n"a.jpg", c/d.png ,0\n',
        "\ufefffile1 file2 label\r\na.jpg   b.jpg 1\r\na.jpg c/d.png 0\r\n",
    ],
)
def test_lists_with_spaces_tabs_and_commas_are_read(pictures, text):
    folder = pictures("a.jpg", "b.jpg", "c/d.png")
    pairs = read_pairs(listing(folder, text))
    assert plain(pairs) == [("a.jpg", "b.jpg", True), ("a.jpg", "c/d.png", False)]
    assert pairs.pictures == tuple(folder / name for name in ("a.jpg", "b.jpg", "c/d.png"))
    assert len(pairs) == 2


def test_names_with_spaces_and_commas_are_read_from_csv(pictures, tmp_path):
    folder = pictures("my face.jpg", "a, b.jpg", "c.jpg")
    path = listing(tmp_path, 'my face.jpg,"a, b.jpg",1\nmy face.jpg,c.jpg,0\n', "list.csv")
    assert plain(read_pairs(path, images=folder))[0] == ("my face.jpg", "a, b.jpg", True)


def test_the_list_of_labeled_faces_in_the_wild_is_recognised(pictures):
    folder = pictures("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0012.jpg", "Bo/Bo_0003.png")
    path = listing(folder, "10\t300\nAnn_Lee\t1\t12\nAnn_Lee\t12\tBo\t3\n")
    pairs = read_pairs(path)
    assert plain(pairs) == [
        ("Ann_Lee/Ann_Lee_0001", "Ann_Lee/Ann_Lee_0012", True),
        ("Ann_Lee/Ann_Lee_0012", "Bo/Bo_0003", False),
    ]
    assert pairs.pictures[2].name == "Bo_0003.png"
    without_counts = listing(folder, "Ann_Lee 1 12\nAnn_Lee 12 Bo 3\n", "pairs2.txt")
    assert plain(read_pairs(without_counts, format="lfw")) == plain(pairs)


def test_files_called_by_numbers_are_not_taken_for_labeled_faces_in_the_wild(pictures):
    folder = pictures("1", "2", "3")
    assert plain(read_pairs(listing(folder, "1 2 1\n1 3 0\n"))) == [("1", "2", True), ("1", "3", False)]


def test_pairs_listed_twice_count_once_and_are_said(pictures, caplog):
    folder = pictures("a", "b", "c")
    pairs = read_pairs(listing(folder, "a b 1\nb a 1\na c 0\na b 1\n"))
    assert len(pairs) == 2
    assert pairs.duplicates == 2
    assert "2 pairs are listed more than once" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b 1\na c 2\n", r"line 2: 'a c 2' is no pair"),
        ("a b 1\n\na c\n", "line 3"),
        ("a b 1\na,,0\n", "line 2"),
        ("a a 1\na b 0\n", "line 1: a is compared with itself"),
        ("a b 1\na c 0\nb a 0\n", "lines 1 and 3 contradict"),
        ("a b 1\n", "1 pairs are of one person and 0 of two"),
        ("", "at least one of each"),
        ("a b 1\na zz/q.jpg 0\n", r"1 of its 3 pictures do not exist: .*zz/q\.jpg; .*--images"),
        ("10 300\na 1 2\nb x 1\n", "line 3: 'b x 1' is no pair of the LFW format"),
    ],
)
def test_lists_that_cannot_be_right_are_refused_with_their_line(pictures, text, words):
    folder = pictures("a", "b", "c")
    with pytest.raises(InputError, match=words):
        read_pairs(listing(folder, text))


def test_lists_that_cannot_be_read_are_refused(pictures, tmp_path):
    folder = pictures("a", "b")
    with pytest.raises(InputError, match="no such list"):
        read_pairs(tmp_path / "nothing.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="UTF-8"):
        read_pairs(tmp_path / "binary.txt")
    with pytest.raises(InputError, match="no such folder"):
        read_pairs(listing(folder, "a b 1"), images=tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="'csv' is not known; allowed are auto, text, lfw"):
        read_pairs(listing(folder, "a b 1"), format="csv")
    with pytest.raises(UsageError, match="leave that out"):
        read_pairs(folder, images=folder)


def test_a_folder_per_person_is_compared_all_with_all(pictures, caplog):
    folder = pictures("ann/2.jpg", "ann/10.jpg", "bo/x.png", "bo/deeper/y.png", "cy/z.jpg", "cy/notes.txt", "loose.jpg")
    pairs = read_pairs(folder)
    assert pairs.names == ("ann/2.jpg", "ann/10.jpg", "bo/x.png", "bo/deeper/y.png", "cy/z.jpg")
    owners = [name.split("/")[0] for name in pairs.names]
    expected = [(pairs.names[i], pairs.names[j], owners[i] == owners[j]) for i in range(5) for j in range(i + 1, 5)]
    assert plain(pairs) == expected
    assert "loose.jpg" in caplog.text


@pytest.mark.parametrize("names", [(), ("ann/1.jpg", "ann/2.jpg"), ("ann/1.jpg", "bo/1.jpg"), ("1.jpg", "2.jpg")])
def test_folders_without_pairs_of_both_kinds_are_refused(pictures, tmp_path, names):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="expected a folder per person"):
        read_pairs(pictures(*names))


def test_folders_with_more_pairs_than_memory_are_refused(pictures, monkeypatch):
    monkeypatch.setattr("retinastream.evaluation.face_pairs.MOST_PAIRS", 2)
    with pytest.raises(UsageError, match="3 pictures, which are 3 pairs"):
        read_pairs(pictures("ann/1.jpg", "ann/2.jpg", "bo/1.jpg"))
    assert MOST_PAIRS >= 1_000_000


# ------------------------------------------------------------------ faces, features, and the whole


def faces_at(*boxes, scores=None, landmarks=None, width=1000, height=500):
    count = len(boxes)
    return Faces(
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        scores=np.array(scores if scores is not None else np.linspace(0.9, 0.6, count), np.float32),
        landmarks=np.tile(template().astype(np.float32), (count, 1, 1)) if landmarks is None else landmarks,
        width=width,
        height=height,
    )


@pytest.mark.parametrize(("how", "expected"), [("largest", 1), ("central", 2), ("best", 0)])
def test_the_face_of_a_picture_is_chosen_by_the_rule_asked_for(how, expected):
    faces = faces_at((0, 0, 50, 50), (0, 100, 200, 300), (480, 230, 520, 270))
    assert choose_face(faces, how) == expected


def test_of_equal_faces_the_best_score_is_chosen_and_of_none_none():
    twins = faces_at((400, 200, 500, 300), (500, 200, 600, 300))
    assert choose_face(twins, "largest") == choose_face(twins, "central") == 0
    assert choose_face(Faces()) is None
    with pytest.raises(UsageError, match="'biggest' is not known; allowed are largest, central, best"):
        choose_face(twins, "biggest")


class ColourDetector:
    """Finds one face in every picture, none in black ones, one without usable landmarks in white ones."""

    def __call__(self, picture):
        if not picture.any():
            return Faces()
        broken = np.full((1, 5, 2), np.nan, np.float32) if (picture == 255).all() else None
        return faces_at((0, 0, 112, 112), landmarks=broken, width=picture.shape[1], height=picture.shape[0])


def colour_embedder(crops):
    """The mean colour of a crop, as a row of length 1."""
    rows = crops.reshape(len(crops), -1, 3).mean(1).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


COLOURS = {
    "red": (10, 20, 200),
    "rose": (30, 30, 210),
    "blue": (220, 10, 10),
    "navy": (120, 0, 0),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


@pytest.fixture
def painted(tmp_path):
    """Pictures of one colour, and a list of pairs over them."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")
    for name, colour in COLOURS.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((120, 120, 3), colour, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"this is no picture")

    def pairs(*rows):
        text = "".join(f"{a}.png {b}.png {s}\n" for a, b, s in rows)
        return read_pairs(listing(tmp_path, text))

    return pairs


def cosine(a, b):
    x, y = (np.array(COLOURS[n], float) for n in (a, b))
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def test_pairs_are_compared_by_the_cosine_of_their_faces(painted):
    done = []
    pairs = painted(("red", "rose", 1), ("blue", "navy", 1), ("red", "blue", 0))
    result = verify(pairs, ColourDetector(), colour_embedder, progress=lambda *at: done.append(at))
    wanted = [cosine("red", "rose"), cosine("blue", "navy"), cosine("red", "blue")]
    np.testing.assert_allclose(result.similarities, wanted, atol=1e-6)
    assert result.curve.at_far(1.0).tar == 1.0
    assert done[0] == (0, 4)
    assert done[-1] == (4, 4)


def test_a_picture_without_a_face_fails_its_pairs(painted):
    pairs = painted(("red", "rose", 1), ("blue", "black", 1), ("black", "rose", 0), ("red", "blue", 0))
    result = verify(pairs, ColourDetector(), colour_embedder)
    assert result.similarities.tolist()[1:3] == [-inf, -inf]
    assert result.curve.at_far(0.5).tar == 0.5
    counts = result.counts()
    assert (counts["pictures_without_face"], counts["failed_same_pairs"], counts["failed_different_pairs"]) == (1, 1, 1)
    assert (counts["same_pairs"], counts["different_pairs"], counts["skipped_pairs"]) == (2, 2, 0)
    assert result.features.faceless == (pairs.names.index("black.png"),)


def test_a_picture_without_a_face_can_be_left_out(painted):
    pairs = painted(("red", "rose", 1), ("blue", "black", 1), ("black", "rose", 0), ("red", "blue", 0))
    result = verify(pairs, ColourDetector(), colour_embedder, without_face="skip")
    assert result.curve.at_far(0.5).tar == 1.0
    counts = result.counts()
    assert (counts["failed_same_pairs"], counts["failed_different_pairs"], counts["skipped_pairs"]) == (0, 0, 2)
    assert (counts["same_pairs"], counts["different_pairs"]) == (1, 1)


def test_landmarks_that_cannot_be_aligned_fail_their_pairs_under_another_name(painted):
    pairs = painted(("red", "rose", 1), ("red", "white", 1), ("red", "blue", 0))
    result = verify(pairs, ColourDetector(), colour_embedder)
    assert result.counts()["pictures_unaligned"] == 1
    assert result.counts()["pictures_without_face"] == 0
    assert result.similarities[1] == -inf


def test_a_picture_that_cannot_be_read_is_not_held_against_the_detector(painted):
    pairs = painted(("red", "rose", 1), ("red", "broken", 1), ("red", "blue", 0))
    result = verify(pairs, ColourDetector(), colour_embedder)
    assert result.counted.tolist() == [True, False, True]
    assert result.curve.at_far(1.0).tar == 1.0
    assert "broken.png" in result.features.unreadable[pairs.names.index("broken.png")]
    written = json.loads(json.dumps(result.to_dict([0.1, 1.0])))
    assert written["pictures_unreadable"] == written["skipped_pairs"] == 1
    assert [point["wanted_far"] for point in written["tar_at_far"]] == [0.1, 1.0]


def test_nothing_left_to_compare_is_said(painted):
    pairs = painted(("red", "black", 1), ("red", "blue", 0))
    with pytest.raises(UsageError, match=r"0 pairs of one person and 1 of two are left of 2: .* 1 show no face"):
        verify(pairs, ColourDetector(), colour_embedder, without_face="skip")
    with pytest.raises(UsageError, match="'drop' is not known; allowed are fail, skip"):
        verify(pairs, ColourDetector(), colour_embedder, without_face="drop")


def test_crops_go_to_the_network_in_portions_and_come_back_in_order(painted, monkeypatch):
    monkeypatch.setattr("retinastream.evaluation.face_features._CROPS_AT_ONCE", 2)
    sizes = []

    def embedder(crops):
        sizes.append(len(crops))
        return colour_embedder(crops)

    pairs = painted(("red", "rose", 1), ("black", "navy", 1), ("blue", "red", 0))
    features = embed_pictures(pairs.pictures, ColourDetector(), embedder)
    assert sizes == [2, 2]
    for name, row in zip(pairs.names, features.embeddings, strict=True):
        colour = np.array(COLOURS[name[:-4]], float)
        expected = colour / np.linalg.norm(colour) if colour.any() else np.full(3, np.nan)
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_no_face_anywhere_gives_only_minus_infinity(painted):
    pairs = painted(("black", "red", 1), ("black", "blue", 0))
    result = verify(pairs, lambda picture: Faces(), colour_embedder)
    assert result.similarities.tolist() == [-inf, -inf]
    assert result.curve.at_far(1.0).tar == 0.0


def test_similarities_of_many_pairs_are_those_of_each(monkeypatch):
    monkeypatch.setattr("retinastream.evaluation.face_features._PAIRS_AT_ONCE", 7)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(6, 4)).astype(np.float32)
    rows[3] = np.nan
    first, second = (side.astype(np.int32) for side in np.triu_indices(6, 1))
    pairs = FacePairs(None, ("",) * 6, (None,) * 6, first, second, first == 0)
    found = similarities(rows, pairs)
    for a, b, value in zip(first, second, found, strict=True):
        expected = -inf if 3 in (a, b) else sum(float(x) * float(y) for x, y in zip(rows[a], rows[b], strict=True))
        assert value == pytest.approx(expected, abs=1e-5)
