"""The entry point of the images, run by bash for real, with a retinastream and a python3 that say what they got."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).resolve().parents[2] / "docker" / "entrypoint.sh"

# Stands for "python3 -c ... LIBRARY": succeeds for the libraries that are in LIBRARIES.
PYTHON = """#!/bin/sh
case " $LIBRARIES " in *" $3 "*) exit 0;; esac
echo "OSError: $3: cannot open shared object file" >&2
exit 1
"""
RETINASTREAM = """#!/bin/sh
printf '%s\\n' "pid $$" "$@"
exit "${ANSWER:-0}"
"""


@pytest.fixture
def start(tmp_path):
    """Start the entry point: returns (exit code, standard output, standard error)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("python3", PYTHON), ("retinastream", RETINASTREAM)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*arguments, user=None, **environment):
        given = {"RETINASTREAM_CACHE": str(tmp_path / "cache"), "LIBRARIES": "", **environment}
        done = subprocess.run(
            ["bash", str(ENTRYPOINT), *arguments],
            env={"PATH": f"{programs}:/usr/bin:/bin", **{k: v for k, v in given.items() if v is not None}},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            user=user,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def gpu(*libraries, **more):
    return {"NVIDIA_DRIVER_CAPABILITIES": "compute,video,utility", "LIBRARIES": " ".join(libraries), **more}


def test_arguments_reach_retinastream_as_they_are(start):
    code, out, err = start("detect", "a b.mp4", "--output", "", "*")
    assert code == 0
    assert out.split("\n")[1:-1] == ["detect", "a b.mp4", "--output", "", "*"]
    assert "container: retinastream detect a b.mp4" in err
    assert "container: models and engines are kept in " in err


def test_it_becomes_retinastream_so_that_signals_reach_it(start, tmp_path):
    process = subprocess.Popen(
        ["bash", str(ENTRYPOINT)],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "RETINASTREAM_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    out, _ = process.communicate(timeout=20)
    assert out == f"pid {process.pid}\n"


def test_the_name_of_the_program_may_be_given(start):
    assert start("retinastream", "doctor")[1].split("\n")[1:-1] == ["doctor"]


def test_the_exit_code_is_that_of_retinastream(start):
    assert start("doctor", ANSWER="130")[0] == 130


def test_the_cache_is_made_and_nothing_is_left_in_it(start, tmp_path):
    assert start("doctor")[0] == 0
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_place_for_the_cache_nothing_starts(start):
    code, out, err = start("doctor", RETINASTREAM_CACHE=None)
    assert (code, out) == (1, "")
    assert "RETINASTREAM_CACHE: is set by the image" in err


def test_a_cache_that_cannot_be_made_ends_with_3_and_what_to_do(start, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = start("doctor", RETINASTREAM_CACHE=str(tmp_path / "file" / "cache"))
    assert (code, out) == (3, "")
    assert "cannot be made; mount a volume there: -v retinastream-cache:" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_volume_of_somebody_else_ends_with_3_and_both_users(start):
    # Not below tmp_path, which nobody else may enter.
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o755)
        code, out, err = start("doctor", RETINASTREAM_CACHE=cache, user=10001)
    assert (code, out) == (3, "")
    assert "cannot be written by user 10001:" in err
    assert "it belongs to 0:0" in err
    assert "run with --user 0:0" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_volume_ends_with_3(start, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    code, _, err = start("doctor")
    assert code == 3
    assert "cannot be written by user" in err


def test_the_cpu_image_says_nothing_of_gpus(start):
    assert "GPU" not in start("doctor")[2]


def test_a_gpu_with_video_is_said(start):
    code, _, err = start("doctor", **gpu("libcuda.so.1", "libnvcuvid.so.1"))
    assert code == 0
    assert "GPU driver with video decoding (NVIDIA_DRIVER_CAPABILITIES=compute,video,utility)" in err


def test_a_missing_capability_video_is_named_with_the_flag_that_brings_it(start):
    code, _, err = start("doctor", **gpu("libcuda.so.1", NVIDIA_DRIVER_CAPABILITIES="compute,utility"))
    assert code == 0
    assert "the capability video is missing (NVIDIA_DRIVER_CAPABILITIES=compute,utility)" in err
    assert "-e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in err


def test_a_gpu_image_without_a_gpu_says_so_and_goes_on(start):
    code, out, err = start("doctor", **gpu())
    assert code == 0
    assert "doctor" in out
    assert "everything runs on the CPU. For a GPU: --gpus all" in err


def test_a_gpu_that_is_required_and_missing_ends_with_3(start):
    code, out, err = start("detect", **gpu(RETINASTREAM_REQUIRE="gpu"))
    assert (code, out) == (3, "")
    assert "start the container with --gpus all" in err


def test_engines_that_are_kept_are_counted(start, tmp_path):
    libraries = gpu("libcuda.so.1", "libnvcuvid.so.1")
    assert "no TensorRT engine kept yet: the first use builds it" in start("doctor", **libraries)[2]
    (tmp_path / "cache" / "engines").mkdir()
    for name in ("a.plan", "b.plan", "a.json", "c.plan.bad"):
        (tmp_path / "cache" / "engines" / name).write_text("")
    assert "2 TensorRT engine(s) kept" in start("doctor", **libraries)[2]
