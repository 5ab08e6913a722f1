"""What a person types becomes inputs; what cannot be found is named, and the rest goes on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from media.builders import write_video
from retinastream.errors import InputError, RetinastreamError, UsageError
from retinastream.pipeline.discover import Discovery, Input, discover, output_stems
from retinastream.pipeline.images import ImageSet
from retinastream.pipeline.listing import expand_sequence, natural_key
from retinastream.pipeline.video import VideoSource


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files are discovered by name, so most of them need no content."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "a/clip10.mp4", "a/clip2.MP4", "a/notes.txt", "a/.hidden.mp4", "a/p2.png", "a/p10.JPG", "a/p1.png",
        "a/sub/deep.mkv", "a/sub/q.webp", "a/.git/x.mp4", "b/clip2.mp4", "b/only.png", "empty/readme.md",
    ):  # fmt: skip
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path


def shape(result: Discovery) -> list[tuple]:
    return [(i.kind, i.name, [p.as_posix() for p in i.paths]) for i in result.inputs]


def only_failure(result: Discovery) -> tuple[str, RetinastreamError]:
    assert result.inputs == []
    (failure,) = result.failures
    return failure


def test_a_directory_gives_its_videos_and_its_pictures_as_one_set_in_natural_order(tree):
    assert shape(discover(["a"])) == [
        ("video", "clip2", ["a/clip2.MP4"]),
        ("video", "clip10", ["a/clip10.mp4"]),
        ("images", "a", ["a/p1.png", "a/p2.png", "a/p10.JPG"]),
    ]


def test_recursive_adds_subdirectories_after_the_files_but_no_hidden_ones(tree):
    assert shape(discover(["a"], recursive=True))[3:] == [
        ("video", "deep", ["a/sub/deep.mkv"]),
        ("images", "q", ["a/sub/q.webp"]),
    ]


def test_files_are_taken_in_the_order_given_and_pictures_join_their_directorys_first(tree):
    assert shape(discover(["b/only.png", "a/p10.JPG", "a/clip10.mp4", "a/p1.png"])) == [
        ("images", "only", ["b/only.png"]),
        ("images", "a", ["a/p10.JPG", "a/p1.png"]),
        ("video", "clip10", ["a/clip10.mp4"]),
    ]


def test_a_file_that_is_named_may_have_any_extension_and_be_hidden(tree):
    assert shape(discover(["a/notes.txt", "a/.hidden.mp4"])) == [
        ("video", "notes", ["a/notes.txt"]),
        ("video", ".hidden", ["a/.hidden.mp4"]),
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/clip*.mp4", ["a/clip10.mp4"]),
        ("?/clip2.*", ["a/clip2.MP4", "b/clip2.mp4"]),
        ("**/*.mkv", ["a/sub/deep.mkv"]),
        ("a/p[12].png", ["a/p1.png", "a/p2.png"]),
        ("a/su*", ["a/sub/deep.mkv", "a/sub/q.webp"]),
    ],
)
def test_globs(pattern, expected, tree):
    result = discover([pattern])
    found = [p.as_posix() for i in result.inputs for p in i.paths]
    assert found == expected
    assert result.failures == []


def test_a_name_that_exists_is_not_a_pattern(tree):
    for name in ("a/[x]*.mp4", "a/%03d.png", "a/p1?.mp4"):
        Path(name).write_bytes(b"x")
        assert shape(discover([name]))[0][2] == [name]


def test_a_glob_without_match_is_a_failure(tree):
    name, error = only_failure(discover(["a/*.avi"]))
    assert name == "a/*.avi" and "no file matches this pattern" in str(error)


@pytest.mark.parametrize("pattern", ["s/f_%d.png", "s/f_%04d.png", "s/f_%02d.png"])
def test_a_numbered_sequence_is_one_set_in_numeric_order(pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    for number in (10, 2, 11000, 1):
        Path(f"s/f_{number:04d}.png").write_bytes(b"x")
    Path("s/f_other.png").write_bytes(b"x")
    Path("s/f_0001.png.bak").write_bytes(b"x")
    assert shape(discover([pattern])) == [
        ("images", "s", ["s/f_0001.png", "s/f_0002.png", "s/f_0010.png", "s/f_11000.png"])
    ]


def test_two_sequences_of_one_directory_stay_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("l_1.png", "r_1.png", "l_2.png", "r_2.png"):
        Path(name).write_bytes(b"x")
    result = discover(["l_%d.png", "r_%d.png"])
    assert [[p.name for p in i.paths] for i in result.inputs] == [["l_1.png", "l_2.png"], ["r_1.png", "r_2.png"]]
    assert len(set(output_stems(result.inputs))) == 2


@pytest.mark.parametrize(
    ("argument", "kind", "message"),
    [
        ("a/clip3.mp4", InputError, "no such file or directory; did you mean a/clip"),
        ("zzz/qqq.mp4", InputError, "its directory zzz does not exist either"),
        ("empty", InputError, r"no media in it .*--recursive.*looked for \.264 .*\.mp4.*\.png"),
        ("a/none_%04d.png", InputError, "no file of this numbered sequence exists"),
        ("a/%d_%d.png", UsageError, "has 2 numbers; expected exactly one"),
        ("nowhere/%d.png", InputError, "the directory nowhere cannot be listed"),
        ("rtsp://camera/1", UsageError, "live and network sources are not supported yet"),
        ("-", UsageError, "standard input"),
        ("", UsageError, "an empty name was given"),
    ],
)
def test_what_cannot_be_found_is_a_failure_with_a_hint(argument, kind, message, tree):
    name, error = only_failure(discover([argument]))
    assert name == argument and isinstance(error, kind)
    with pytest.raises(kind, match=message):
        raise error


def test_a_failure_does_not_stop_the_others(tree):
    result = discover(["nope.mp4", "b/clip2.mp4", "empty", "b/only.png"])
    assert [i.name for i in result.inputs] == ["clip2", "only"]
    assert [name for name, _ in result.failures] == ["nope.mp4", "empty"]


def test_a_dangling_link_and_a_directory_that_cannot_be_listed_are_failures(tree, monkeypatch):
    Path("link.mp4").symlink_to("gone.mp4")
    assert "no such file" in str(only_failure(discover(["link.mp4"]))[1])

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "cannot be listed (Permission denied)" in str(only_failure(discover(["a"]))[1])


def test_the_same_file_given_twice_is_read_once_and_said_once(tree):
    Path("b/again.mp4").symlink_to("clip2.mp4")
    result = discover(["b/clip2.mp4", "./b/clip2.mp4", "b/clip2.mp4", "b/again.mp4"])
    assert [i.name for i in result.inputs] == ["clip2"]
    assert result.notes == [
        "b/clip2.mp4 was given more than once; it is read once",
        "b/again.mp4 was given more than once (the same file as b/clip2.mp4); it is read once",
    ]


def test_links_that_loop_end(tree):
    Path("a/sub/up").symlink_to("..")
    Path("a/here").symlink_to(".")
    names = [i.name for i in discover(["a"], recursive=True).inputs]
    assert sorted(names) == ["a", "clip10", "clip2", "deep", "q"]


def test_typescript_is_not_taken_for_a_transport_stream(tmp_path):
    write_video(tmp_path / "real.ts", frames=2)
    (tmp_path / "code.ts").write_text("export const x = 1;\n")
    assert [i.name for i in discover([tmp_path]).inputs] == ["real"]


def test_natural_order():
    names = ["b", "a10", "a2", "A1", "a02", "10", "9", "a²"]
    assert sorted(names, key=natural_key) == ["9", "10", "A1", "a02", "a2", "a10", "a²", "b"]


def test_a_sequence_may_have_gaps_and_literal_pattern_characters(tmp_path):
    for number in (3, 7):
        (tmp_path / f"f(+)_{number}.png").write_bytes(b"x")
    assert [p.name for p in expand_sequence(str(tmp_path / "f(+)_%d.png"))] == ["f(+)_3.png", "f(+)_7.png"]


def video(path: str) -> Input:
    return Input("video", (Path(path),), Path(path).stem)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/x.mp4", "a/y.mp4"], ["x", "y"]),
        (["a/x.mp4", "a/x.mkv"], ["x_mp4", "x_mkv"]),
        (["a/x.mp4", "b/x.mp4"], ["a_x", "b_x"]),
        (["a/x.mp4", "b/x.mp4", "a/x.mkv"], ["a_x", "b_x", "x_mkv"]),
        (["a/x.mp4", "a/X.mkv"], ["x_mp4", "X_mkv"]),
        (["1/a/x.mp4", "2/a/x.mp4"], ["x", "x_2"]),
        (["a/x.mp4", "a/x.mkv", "a/x_mp4.avi"], ["x", "x_mkv", "x_mp4"]),
        (["1/a/x.mp4", "2/a/x.mp4", "x_2.mp4"], ["x", "x_2", "x_2_2"]),
    ],
)
def test_output_stems_are_unique_and_keep_the_name_where_they_can(paths, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stems = output_stems([video(path) for path in paths])
    assert len({stem.casefold() for stem in stems}) == len(paths)
    assert stems == expected


def test_inputs_open_as_sources(tmp_path):
    write_video(tmp_path / "v.mp4", frames=4)
    (tmp_path / "p.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    pictures, movie = discover([tmp_path]).inputs
    with movie.open(stride=3) as source:
        assert isinstance(source, VideoSource) and [f.index for f in source] == [0, 3]
    with pictures.open() as source:
        assert isinstance(source, ImageSet) and len(list(source)) == 1
    with pytest.raises(UsageError, match="start and end are times, which pictures do not have"):
        pictures.open(start=1.0)
