"""A file gets its name when it is finished, never replaces anything before that, and says where a part of it is."""

import contextlib
import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest

from retinastream.errors import OutputError, UsageError
from retinastream.pipeline.sinks.part_file import PartFile


def test_name_appears_only_when_closed(tmp_path):
    path = tmp_path / "new folder" / "ä b.txt"
    file = PartFile(path)
    file.write("one\n")
    assert not path.exists()
    assert file.part == path.with_name("ä b.txt.part")
    file.close()
    file.close()
    assert path.read_text() == "one\n"
    assert list(path.parent.iterdir()) == [path]


def test_existing_file_is_untouched_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    file = PartFile(path, overwrite=True)
    file.write("new")
    file.flush()
    assert path.read_text() == "old"
    file.abort()
    assert path.read_text() == "old"
    assert file.part.read_text() == "new"
    again = PartFile(path, overwrite=True)
    again.write("newer")
    again.close()
    assert path.read_text() == "newer"
    assert not file.part.exists()


def test_existing_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UsageError, match=r"a\.txt exists already.*--overwrite"):
        PartFile(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_appears_during_the_run_is_left_alone(tmp_path):
    path = tmp_path / "a.txt"
    file = PartFile(path)
    file.write("ours")
    path.write_text("theirs")
    with pytest.raises(OutputError, match=r"a\.txt appeared while .*new result is in .*a\.txt\.part"):
        file.close()
    assert path.read_text() == "theirs"
    assert file.part.read_text() == "ours"


def test_directory_and_device_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is a directory"):
        PartFile(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="not an ordinary file"):
        PartFile(Path("/dev/null"), overwrite=True)


def test_second_writer_of_the_same_name_is_refused(tmp_path):
    first = PartFile(tmp_path / "a.txt")
    first.write("first")
    with pytest.raises(OutputError, match="another run is writing"):
        PartFile(tmp_path / "a.txt")
    first.close()
    assert (tmp_path / "a.txt").read_text() == "first"


def test_symbolic_link_keeps_pointing_at_the_data(tmp_path):
    target = tmp_path / "disk" / "real.txt"
    target.parent.mkdir()
    target.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    file = PartFile(link, overwrite=True)
    file.write("new")
    file.close()
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_folder_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*out\.txt"):
        PartFile(tmp_path / "file" / "out.txt")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, a folder that even root cannot write to")
def test_folder_that_cannot_be_written_is_an_output_error():
    with pytest.raises(OutputError, match=r"cannot write /proc/self/out\.txt"):
        PartFile(Path("/proc/self/out.txt"))


def test_read_only_file_system_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"out\.txt: the file system is read-only; write elsewhere"):
        PartFile(tmp_path / "out.txt")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_full_disk_at_any_step_keeps_the_part(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    path.write_text("old")
    file = PartFile(path, overwrite=True)
    file.write("kept\n")
    file.flush()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    file.write("lost\n")
    with pytest.raises(OutputError, match=r"a\.txt: the disk is full.*so far is in .*a\.txt\.part"):
        file.close()
    assert path.read_text() == "old"
    assert file.part.read_text().startswith("kept\n")


@contextlib.contextmanager
def small_file_system(folder: Path, size: str):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_really_full_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    with small_file_system(folder, "128k"):
        file = PartFile(folder / "a.txt")
        with pytest.raises(OutputError, match="the disk is full"):
            for _ in range(64):
                file.write("x" * 65536)
        with pytest.raises(OutputError, match="the disk is full"):
            file.close()
        assert file.part.stat().st_size > 0
        assert not (folder / "a.txt").exists()


def test_file_size_limit_of_the_process(tmp_path):
    file = PartFile(tmp_path / "a.txt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="larger than the limit"):
            for _ in range(4):
                file.write("x" * 65536)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.abort()
    assert file.part.stat().st_size == 100_000


def test_tail_is_there_after_every_flush(tmp_path):
    file = PartFile(tmp_path / "a.txt", tail="]")
    for expected in ("[1]", "[1,2]"):
        file.write(expected[-3:-1] if len(expected) > 3 else "[1")
        file.flush()
        assert file.part.read_text() == expected
    file.close()
    assert (tmp_path / "a.txt").read_text() == "[1,2]"


def test_name_that_is_not_utf8_does_not_stop_the_output(tmp_path):
    file = PartFile(tmp_path / "a.txt")
    file.write(os.fsdecode(b"caf\xe9.mp4\n"))
    file.close()
    assert (tmp_path / "a.txt").read_text() == "caf?.mp4\n"
