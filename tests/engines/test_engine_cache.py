"""The cache finds what was kept, explains what it has not, and loads nothing that was changed."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from kept_engines import H200, SHAPES, keep, key, machine, plan, record

from retinastream.engines.cache import contents, durable, trust
from retinastream.engines.cache.errors import DamagedPlanError, UntrustedPlanError
from retinastream.engines.cache.match import Found, Miss
from retinastream.engines.cache.sidecar import read_sidecar
from retinastream.engines.cache.store import EngineCache
from retinastream.errors import OutputError, SetupError


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache" / "engines")


def names(cache, *suffixes):
    return sorted(p.name for p in cache.folder.iterdir() if p.name.endswith(suffixes or ("",)))


def test_what_was_kept_is_found_and_read_as_it_was(cache):
    entry = keep(cache)
    found = cache.find(key())
    assert isinstance(found, Found)
    assert found.entry.sidecar == entry.sidecar
    assert found.warnings == ()
    assert cache.read_verified_plan(found.entry) == plan()
    assert found.entry.sidecar.build == record()
    assert names(cache, ".plan", ".json") == [f"{key().digest[:32]}.json", f"{key().digest[:32]}.plan"]


def test_default_place_is_beside_the_models(monkeypatch, tmp_path):
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "mine"))
    assert EngineCache().folder == tmp_path / "mine" / "engines"


def test_files_and_folder_are_private_whatever_the_umask(cache):
    before = os.umask(0)
    try:
        entry = keep(cache)
    finally:
        os.umask(before)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (entry.plan_path, entry.sidecar_path)} == {0o600}


def test_a_memoryview_is_kept_like_bytes(cache):
    entry = keep(cache, content=memoryview(plan(3)))
    assert cache.read_verified_plan(entry) == plan(3)


def test_nothing_kept_is_an_explained_miss_that_makes_no_folder(cache):
    assert cache.find(key()) == Miss("no engine of this model is kept for this machine", None)
    assert not cache.folder.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            {"machine": machine(tensorrt="11.5.0.1")}, "TensorRT was 11.4.0.106 and is 11.5.0.1", id="TensorRT"
        ),
        pytest.param({"machine": machine(gpu="NVIDIA L4")}, "the GPU was NVIDIA H200 and is NVIDIA L4", id="GPU"),
        pytest.param(
            {"machine": machine(compute_capability=(8, 9))},
            "the compute capability was 9.0 and is 8.9",
            id="capability",
        ),
        pytest.param({"precision": "int8"}, "the precision was fp16 and is int8", id="precision"),
        pytest.param(
            {"builder": {"optimization_level": 5, "flags": ["STRONGLY_TYPED"]}},
            "the builder's settings differ in optimization_level: 3 then, 5 now",
            id="level",
        ),
        pytest.param(
            {"profiles": ({"images": SHAPES.model_copy(update={"maximum": (8, 3, 736, 1280)})},)},
            "and is images 1x3x736x1280..8x3x736x1280 tuned for 4x3x736x1280",
            id="shapes",
        ),
        pytest.param(
            {"calibration_sha256": "ef" * 32}, "the calibration was none and is efefefefefef...", id="calibration"
        ),
        pytest.param(
            {"onnx_sha256": "cd" * 32}, "the ONNX graph was abababababab... and is cdcdcdcdcdcd...", id="graph"
        ),
    ],
)
def test_a_miss_names_the_field_what_it_was_and_what_it_is(cache, change, said):
    entry = keep(cache)
    miss = cache.find(key(**change))
    assert isinstance(miss, Miss)
    assert miss.reason.startswith(f"the nearest engine that is kept, {entry.short} (mnet025 fp16, 1x3x736x1280..4x3x")
    assert said in miss.reason
    assert miss.reason.count(" and is ") + miss.reason.count(" now") == 1
    assert miss.nearest.sidecar == entry.sidecar


def test_a_miss_tells_of_the_nearest_and_of_no_other_model(cache):
    keep(cache, key(onnx_sha256="cd" * 32, precision="int8"))
    keep(cache, key(machine=machine(tensorrt="10.16.1.11", gpu="NVIDIA L4")))
    near = keep(cache, key(machine=machine(tensorrt="10.16.1.11")))
    assert cache.find(key()).nearest.digest == near.digest
    assert cache.find(key(onnx_sha256="ef" * 32, precision="f32")).nearest is None


def test_another_driver_only_warns(cache):
    keep(cache)
    found = cache.find(key(machine=machine(driver_cuda="13.2")))
    assert isinstance(found, Found)
    (warning,) = found.warnings
    assert "the CUDA version of the driver was 13.1 and is 13.2; it is used; build it again if it misbehaves" in warning


def test_a_plan_built_to_be_carried_is_used_on_another_gpu_with_a_warning(cache):
    keep(cache, key(hardware_compatibility="same-cc"))
    found = cache.find(key(hardware_compatibility="same-cc", machine=machine(gpu="NVIDIA GH200", multiprocessors=144)))
    assert isinstance(found, Found)
    assert any("the GPU was NVIDIA H200 and is NVIDIA GH200" in warning for warning in found.warnings)


def test_building_again_replaces_the_plan(cache):
    keep(cache)
    with cache.building(key()) as build:
        assert build.found is not None
        build.publish(plan(9, size=9000), record(model="again"))
    entry = cache.find(key()).entry
    assert entry.sidecar.build.model == "again"
    assert cache.read_verified_plan(entry) == plan(9, size=9000)


def test_scratch_is_there_while_building_and_gone_afterwards(cache):
    with pytest.raises(ZeroDivisionError), cache.building(key()) as build:
        (build.scratch / "weights.bin").write_bytes(b"x")
        where = build.scratch
        assert where.stat().st_mode & 0o777 == 0o700
        1 / 0  # noqa: B018
    assert not where.exists()
    assert isinstance(cache.find(key()), Miss)


def test_reading_a_plan_to_run_it_notes_the_moment_and_looking_at_it_does_not(cache):
    entry = keep(cache)
    os.utime(entry.sidecar_path, (1e9, 1e9))
    cache.find(key())
    cache.read_verified_plan(entry, used=False)
    assert entry.used.year == 2001
    cache.read_verified_plan(entry)
    assert entry.used.year > 2001


# What was changed after it had been written.


def truncate(entry):
    with entry.plan_path.open("r+b") as file:
        file.truncate(100)


def flip(entry):
    with entry.plan_path.open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff\x00\xff")


def edit_sidecar(entry):
    text = entry.sidecar_path.read_text()
    assert "11.4.0.106" in text
    entry.sidecar_path.write_text(text.replace("11.4.0.106", "11.5.0.001"))


def move_sidecar(entry):
    other = key(precision="int8").digest[:32]
    entry.sidecar_path.rename(entry.folder / f"{other}.json")
    entry.plan_path.rename(entry.folder / f"{other}.plan")


def test_a_truncated_plan_is_a_miss_with_the_reason(cache):
    truncate(keep(cache))
    assert "has 100 bytes, 4096 were written" in cache.find(key()).reason


def test_a_changed_plan_is_not_read(cache):
    entry = keep(cache)
    flip(entry)
    with pytest.raises(DamagedPlanError, match="its SHA-256 differs"):
        cache.read_verified_plan(entry)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "pointer of Git LFS", id="LFS"),
        pytest.param(b"<html>not found</html>\n" * 10, "is text, not an engine", id="text"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(plan(size=300), "fewer bytes than the 4096", id="shorter"),
        pytest.param(plan(size=5000), "more bytes than the 4096", id="longer"),
    ],
)
def test_what_lies_in_place_of_a_plan_is_named(cache, content, said):
    entry = keep(cache)
    entry.plan_path.write_bytes(content)
    with pytest.raises(DamagedPlanError, match=said):
        cache.read_verified_plan(entry)


def test_an_edited_sidecar_is_a_miss_with_the_reason(cache):
    edit_sidecar(keep(cache))
    miss = cache.find(key())
    assert isinstance(miss, Miss)
    assert "was changed after it had been written" in miss.reason


def test_a_sidecar_that_describes_another_engine_is_a_miss(cache):
    move_sidecar(keep(cache))
    assert "describes another engine" in cache.find(key(precision="int8")).reason


def test_a_missing_sidecar_is_a_miss_and_the_plan_is_cleared_by_the_next_build(cache):
    entry = keep(cache)
    entry.sidecar_path.unlink()
    assert isinstance(cache.find(key()), Miss)
    with cache.building(key()) as build:
        assert build.found is None
        assert not entry.plan_path.exists()


def test_a_missing_plan_is_a_miss_with_the_reason(cache):
    keep(cache).plan_path.unlink()
    assert "is missing, its sidecar is there" in cache.find(key()).reason


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b'{"format": 7}', b'{"format": NaN}', b"\xff\xfe\x00", b"{" * 50_000])
def test_text_that_is_no_sidecar_is_refused(text):
    with pytest.raises(DamagedPlanError, match="build the engine again"):
        read_sidecar(text, "x.json")


def test_a_sidecar_with_a_right_seal_and_a_wrong_field_is_refused(cache):
    from retinastream.engines.cache.sidecar import _seal

    values = json.loads(keep(cache).sidecar_path.read_text())
    del values["sha256"]
    values["plan_size"] = "large"
    text = json.dumps({**values, "sha256": _seal(values)}).encode()
    with pytest.raises(DamagedPlanError, match="plan_size"):
        read_sidecar(text, "x.json")


# Who could have written it.


def test_a_plan_that_is_a_link_is_not_read(cache, tmp_path):
    entry = keep(cache)
    elsewhere = tmp_path / "elsewhere.plan"
    entry.plan_path.rename(elsewhere)
    entry.plan_path.symlink_to(elsewhere)
    with pytest.raises(UntrustedPlanError, match="symbolic link"):
        cache.read_verified_plan(entry)


def test_a_sidecar_that_is_a_link_is_a_miss(cache, tmp_path):
    entry = keep(cache)
    entry.sidecar_path.rename(tmp_path / "elsewhere.json")
    entry.sidecar_path.symlink_to(tmp_path / "elsewhere.json")
    assert "symbolic link" in cache.find(key()).reason


def test_a_folder_that_is_a_link_is_refused(cache, tmp_path):
    entry = keep(cache)
    cache.folder.rename(tmp_path / "moved")
    cache.folder.symlink_to(tmp_path / "moved")
    for call in (lambda: cache.find(key()), lambda: cache.read_verified_plan(entry), lambda: keep(cache)):
        with pytest.raises(UntrustedPlanError, match="symbolic link"):
            call()


def test_a_pipe_in_place_of_a_plan_does_not_block(cache):
    entry = keep(cache)
    entry.plan_path.unlink()
    os.mkfifo(entry.plan_path)
    has_blocked = threading.Event()

    def let_go():
        has_blocked.set()
        os.close(os.open(entry.plan_path, os.O_RDWR))

    timer = threading.Timer(10, let_go)
    timer.start()
    with pytest.raises(UntrustedPlanError, match="not an ordinary file"):
        cache.read_verified_plan(entry)
    timer.cancel()
    assert not has_blocked.is_set()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_plan_that_others_can_write_is_not_read(cache, mode):
    entry = keep(cache)
    entry.plan_path.chmod(mode)
    with pytest.raises(UntrustedPlanError, match=f"can be written by others \\(mode 0{mode:o}\\)"):
        cache.read_verified_plan(entry)


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(cache, mode):
    keep(cache)
    cache.folder.chmod(mode)
    with pytest.raises(UntrustedPlanError, match="can be written by others"):
        cache.find(key())


def test_what_others_can_read_is_no_danger(cache):
    entry = keep(cache)
    for path, mode in ((cache.folder, 0o755), (entry.plan_path, 0o644), (entry.sidecar_path, 0o644)):
        path.chmod(mode)
    assert cache.read_verified_plan(cache.find(key()).entry) == plan()


def test_files_of_somebody_else_are_refused(cache, monkeypatch):
    keep(cache)
    me = os.geteuid()
    monkeypatch.setattr(trust.os, "geteuid", lambda: me + 1)
    with pytest.raises(UntrustedPlanError, match=f"belongs to user {me}, this process is user {me + 1}"):
        cache.find(key())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_plan_that_was_given_away_is_refused(cache):
    entry = keep(cache)
    os.chown(entry.plan_path, 12345, -1)
    with pytest.raises(UntrustedPlanError, match="belongs to user 12345"):
        cache.read_verified_plan(entry)


@pytest.fixture
def forbidden(monkeypatch):
    """Let the system refuse to open what has this name, as it does what another user keeps private."""

    def install(name):
        real = os.open

        def refuse(path, *arguments, **named):
            if Path(path).name == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *arguments, **named)

        monkeypatch.setattr(trust.os, "open", refuse)

    return install


def test_files_that_cannot_be_opened_are_refused_with_the_reason(cache, forbidden):
    entry = keep(cache)
    forbidden(entry.sidecar_path.name)
    missed = cache.find(key())
    assert isinstance(missed, Miss)
    assert "cannot be opened by this user: Permission denied. Remove it" in missed.reason
    assert [item.path for item in contents.usable(cache.folder)[1]] == [entry.sidecar_path]


def test_a_plan_that_cannot_be_opened_is_refused(cache, forbidden):
    entry = keep(cache)
    forbidden(entry.plan_path.name)
    with pytest.raises(UntrustedPlanError, match="cannot be opened by this user"):
        cache.read_verified_plan(entry)


def test_a_folder_that_cannot_be_opened_is_named_with_the_way_out(cache, forbidden):
    keep(cache)
    forbidden(cache.folder.name)
    for use in (lambda: cache.find(key()), cache.entries):
        with pytest.raises(SetupError, match=r"engines cannot be read: Permission denied\. Set RETINASTREAM_CACHE"):
            use()


# Where nothing can be written.


@pytest.fixture
def broken_disk(monkeypatch):
    """Let a function of ``os`` fail as a disk does."""

    def install(name, number):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(durable.os, name, fail)

    return install


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "Input/output error")],
)
def test_a_failed_write_leaves_the_engine_that_was_there_and_no_litter(cache, broken_disk, number, said):
    before = keep(cache)
    with cache.building(key()) as build:
        broken_disk("fsync", number)
        with pytest.raises(OutputError, match=said):
            build.publish(plan(5), record())
    assert names(cache, ".part") == []
    assert cache.read_verified_plan(cache.find(key()).entry) == plan()
    assert before.sidecar == cache.find(key()).entry.sidecar


def test_a_folder_without_room_is_said_before_the_build(cache):
    with pytest.raises(OutputError, match=r"free and about .* MB are needed"), cache.building(key(), room=2**60):
        pytest.fail("a build began without room for its result")


def test_a_read_only_file_system_is_said_before_the_build_and_still_read(cache, monkeypatch):
    entry = keep(cache)
    real = os.open

    def read_only(path, flags, *arguments, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "utime", lambda *_: read_only("", os.O_RDWR))
    assert cache.read_verified_plan(cache.find(key()).entry) == plan()
    with pytest.raises(OutputError, match="read-only; RETINASTREAM_CACHE puts"), cache.building(key()):
        pytest.fail("a build began where nothing can be kept")
    with pytest.raises(OutputError, match="read-only"):
        cache.quarantine(entry, "test")


def test_a_cache_inside_a_file_is_an_error_of_the_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        keep(EngineCache(tmp_path / "file" / "engines"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_folder_is_an_error_of_the_output(cache):
    keep(cache)
    cache.folder.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        keep(cache)


# Quarantine.


def test_a_plan_put_aside_is_not_found_and_can_be_looked_at(cache):
    entry = keep(cache)
    bad = cache.quarantine(entry, "TensorRT said: magicTag == rt::kPLAN_MAGIC_TAG failed")
    assert isinstance(cache.find(key()), Miss)
    assert bad.read_bytes() == plan()
    (item,) = cache.quarantined(key().digest)
    assert (item.path, item.model, item.size) == (bad, "mnet025", 4096)
    assert "magicTag" in item.reason
    assert cache.quarantined(key(precision="int8").digest) == []
    assert names(cache, ".json") == [f"{key().digest[:32]}.bad.json"]
    keep(cache)
    assert isinstance(cache.find(key()), Found)


def test_a_plan_that_was_built_again_meanwhile_is_left_alone(cache):
    old = keep(cache, content=plan(1))
    keep(cache, content=plan(2))
    assert cache.quarantine(old, "the old one") is None
    assert cache.read_verified_plan(cache.find(key()).entry) == plan(2)
    assert cache.quarantined() == []


def test_a_damaged_plan_can_be_put_aside(cache):
    entry = keep(cache)
    truncate(entry)
    assert cache.quarantine(entry, "truncated") is not None
    assert cache.quarantined()[0].size == 100
    cache.quarantine(entry, "twice")  # nothing is left to be put aside


# Timings of the builder.


def test_timings_are_kept_per_gpu_and_version(cache):
    assert cache.read_timing_cache(H200) == b""
    cache.write_timing_cache(H200, memoryview(b"learned"))
    assert cache.read_timing_cache(H200) == b"learned"
    assert cache.read_timing_cache(machine(driver_cuda="13.9")) == b"learned"
    for other in (machine(tensorrt="11.5.0.1"), machine(gpu="NVIDIA L4"), machine(multiprocessors=16)):
        assert cache.read_timing_cache(other) == b""


@pytest.mark.parametrize("spoil", ["damage", "link", "mode"])
def test_timings_that_were_changed_are_not_used(cache, spoil, caplog):
    cache.write_timing_cache(H200, b"learned")
    (path,) = cache.folder.glob("*.timing")
    if spoil == "damage":
        path.write_bytes(path.read_bytes() + b"!")
    elif spoil == "link":
        path.symlink_to(path.rename(Path(f"{path}.moved")))
    else:
        path.chmod(0o666)
    assert cache.read_timing_cache(H200) == b""
    assert "are not used" in caplog.text


def test_timings_that_cannot_be_written_do_not_fail_a_build(cache, broken_disk, caplog):
    broken_disk("fsync", errno.ENOSPC)
    cache.write_timing_cache(H200, b"learned")
    assert "are not kept" in caplog.text
    assert cache.read_timing_cache(H200) == b""
