"""``retinastream engine list | prune | path | export | import``, called as a person calls them."""

import errno
import fcntl
import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))
from kept_engines import keep, key, machine, plan

from retinastream.engines.cache.store import EngineCache

DAY = 86400


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    return EngineCache()


def used(entry, days):
    """Pretend that an engine was used so many days ago."""
    then = time.time() - days * DAY
    os.utime(entry.sidecar_path, (then, then))
    return entry


@pytest.fixture
def three(cache):
    """Three engines, used 40, 20 and 1 days ago."""
    return [
        used(keep(cache, key(precision=precision), plan(seed), model=model), days)
        for seed, (precision, model, days) in enumerate(
            [("f32", "mnet025", 40), ("fp16", "mnet025", 20), ("int8", "r50", 1)]
        )
    ]


def kept(cache):
    return {entry.sidecar.key.precision for entry in cache.entries()}


def test_an_empty_cache_is_listed_as_empty(retinastream, cache):
    code, out, _ = retinastream("engine", "list")
    assert code == 0
    assert out == f"0 engines, 0.0 MB, in {cache.folder}\n"
    assert not cache.folder.exists()


def test_list_shows_what_a_person_needs_one_line_each_latest_first(retinastream, cache, three):
    code, out, _ = retinastream("engine", "list")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[2] for line in lines[1:4]] == ["int8", "fp16", "f32"]
    for word in (three[1].digest[:12], "mnet025", "1x3x736x1280..4x3x736x1280", "NVIDIA H200", "11.4.0.106"):
        assert word in lines[2]
    assert lines[-1].startswith("3 engines, 0.0 MB")


def test_list_as_json_holds_the_whole_sidecars(retinastream, cache, three):
    three[0].plan_path.unlink()
    cache.quarantine(three[1], "TensorRT refused")
    answer = json.loads(retinastream("engine", "list", "--json")[1])
    (engine,) = answer["engines"]
    assert engine["digest"] == three[2].digest
    assert engine["path"] == str(three[2].plan_path)
    assert engine["key"]["machine"]["gpu"] == "NVIDIA H200"
    assert engine["build"]["accuracy"] == {"boxes": {"worst": 0.25}}
    assert "is missing" in answer["unusable"][0]["reason"]
    assert answer["quarantined"][0]["reason"] == "TensorRT refused"


def test_list_with_verify_reads_the_plans(retinastream, cache, three):
    content = bytearray(three[0].plan_path.read_bytes())
    content[1000] ^= 1
    three[0].plan_path.write_bytes(content)
    assert "unusable" not in retinastream("engine", "list")[1]
    before = three[1].used
    out = retinastream("engine", "list", "--verify")[1]
    assert f"unusable: {three[0].plan_path.name}: " in out
    assert "2 engines" in out
    assert three[1].used == before, "looking at an engine is not using it"


def test_path_takes_digits_or_a_model_and_names_the_candidates_otherwise(retinastream, cache, three):
    code, out, _ = retinastream("engine", "path", three[0].digest[:8], "r50")
    assert (code, out.split()) == (0, [str(three[0].plan_path), str(three[2].plan_path)])
    code, _, err = retinastream("engine", "path", "mnet025")
    assert code == 2
    assert "mnet025 names 2 engines" in err
    assert three[0].short in err
    assert three[1].short in err
    code, _, err = retinastream("engine", "path", "nothing")
    assert code == 2
    assert "no engine is called 'nothing'; kept are: " in err
    assert retinastream("engine", "prune", "--all")[0] == 0
    _, _, err = retinastream("engine", "path", "nothing")
    assert f"none is kept in {cache.folder}. `retinastream engine build` makes one" in err


@pytest.mark.parametrize(
    ("options", "left"),
    [
        pytest.param(["--older-than", "30d"], {"fp16", "int8"}, id="age"),
        pytest.param(["--older-than", "2w"], {"int8"}, id="age in weeks"),
        pytest.param(["--keep", "1"], {"int8"}, id="number"),
        pytest.param(["--keep", "2", "--older-than", "2w"], {"int8"}, id="either"),
        pytest.param(["--keep", "0"], set(), id="none"),
        pytest.param(["--all"], set(), id="all"),
        pytest.param([], {"f32", "fp16", "int8"}, id="nothing asked for"),
    ],
)
def test_prune_removes_what_was_asked_for_and_dry_run_removes_nothing(retinastream, cache, three, options, left):
    code, out, _ = retinastream("engine", "prune", "--dry-run", *options)
    assert code == 0
    assert kept(cache) == {"f32", "fp16", "int8"}
    assert out.count("would remove") == 3 - len(left)
    code, out, _ = retinastream("engine", "prune", *options)
    assert code == 0
    assert kept(cache) == left
    assert out.count("\nremoved") + out.startswith("removed") == 3 - len(left)
    assert f"freed in {cache.folder}" in out
    assert len(list(cache.folder.glob("*.plan"))) == len(left)


def test_prune_all_leaves_an_empty_folder(retinastream, cache, three):
    cache.write_timing_cache(machine(), b"x")
    cache.quarantine(three[0], "bad")
    assert retinastream("engine", "prune", "--all")[0] == 0
    assert list(cache.folder.iterdir()) == []


def test_prune_takes_away_what_was_put_aside_only_when_asked(retinastream, cache, three):
    bad = cache.quarantine(three[0], "TensorRT refused")
    retinastream("engine", "prune")
    assert bad.exists()
    out = retinastream("engine", "prune", "--quarantined")[1]
    assert "TensorRT refused" in out
    assert not list(cache.folder.glob("*.bad*"))
    assert kept(cache) == {"fp16", "int8"}


def test_prune_clears_what_killed_builds_left_and_what_is_broken(retinastream, cache, three):
    name = "0" * 32
    (cache.folder / f"{name}.1-2.part").mkdir()
    (cache.folder / f"{name}.1-2.part" / "weights").write_bytes(bytes(5_000_000))
    (cache.folder / f"{name}.plan").write_bytes(b"no sidecar")
    three[0].plan_path.write_bytes(b"short")
    out = retinastream("engine", "prune")[1]
    assert "5.0 MB: its build was killed" in out
    assert not list(cache.folder.glob(f"{name}*"))
    assert not three[0].sidecar_path.exists()
    assert kept(cache) == {"fp16", "int8"}


def test_prune_leaves_alone_what_is_being_built(retinastream, cache, three):
    with (cache.folder / f"{three[0].digest[:32]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (cache.folder / f"{three[0].digest[:32]}.plan.9-9.part").write_bytes(b"growing")
        planned = retinastream("engine", "prune", "--dry-run")[1]
        out = retinastream("engine", "prune", "--all")[1]
    assert "killed" not in planned, "its builder is alive"
    assert "kept, because it is being built: " in out
    assert kept(cache) == {"f32"}
    assert len(list(cache.folder.glob("*.part"))) == 1


def test_prune_of_a_read_only_cache_says_so(retinastream, cache, three, monkeypatch):
    real = os.open

    def read_only(path, flags, *arguments, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).endswith(".lock"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *arguments, **named)

    (cache.folder / f"{three[0].digest[:32]}.lock").touch()
    monkeypatch.setattr(os, "open", read_only)
    code, out, err = retinastream("engine", "prune", "--all")
    assert (code, out, "the file system is read-only" in err) == (3, "", True)


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1 month", "30D"])
def test_an_age_that_is_not_understood_is_refused(retinastream, cache, three, age):
    code, _, err = retinastream("engine", "prune", f"--older-than={age}")
    assert code == 2
    assert "12h, 30d or 2w" in err
    assert len(kept(cache)) == 3


@pytest.mark.parametrize("target", ["engine.zip", "folder"])
def test_an_exported_engine_comes_back_as_it_was(retinastream, cache, three, target, tmp_path):
    out_path = tmp_path / "carried" / target
    code, out, _ = retinastream("engine", "export", three[1].short, out_path)
    assert (code, out.strip()) == (0, str(out_path))
    retinastream("engine", "prune", "--all")
    code, out, err = retinastream("engine", "import", out_path, "--trust")
    assert code == 0
    assert "was built for NVIDIA H200 with TensorRT 11.4.0.106 and is used only there" in err
    (entry,) = cache.entries()
    assert out.strip() == str(entry.plan_path)
    assert entry.sidecar.build == three[1].sidecar.build
    assert cache.read_verified_plan(cache.find(key()).entry) == plan(1)


def test_the_same_engine_gives_the_same_archive(retinastream, cache, three, tmp_path):
    for name in ("a.zip", "b.zip"):
        retinastream("engine", "export", "r50", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_engine_that_cannot_be_used_is_named_with_the_reason(retinastream, cache, three):
    path = three[0].plan_path
    path.write_bytes(path.read_bytes()[:100])
    for name in (path, three[0].digest[:8]):
        code, _, err = retinastream("engine", "inspect", name)
        assert (code, "has 100 bytes" in err, "truncated" in err) == (3, True, True)


def test_without_trust_nothing_comes_in(retinastream, cache, three, tmp_path):
    retinastream("engine", "export", "r50", tmp_path / "e.zip")
    retinastream("engine", "prune", "--all")
    code, _, err = retinastream("engine", "import", tmp_path / "e.zip")
    assert code == 3
    assert "an engine is code that runs with your rights" in err
    assert "--trust" in err
    assert cache.entries() == []
    code, _, err = retinastream("engine", "import", "missing.zip")
    assert (code, "there is no such file or folder" in err) == (1, True)


def test_an_engine_for_another_system_comes_in_with_a_warning(retinastream, cache, tmp_path):
    keep(cache, key(machine=machine(system="linux-riscv64")))
    retinastream("engine", "export", "mnet025", tmp_path / "e.zip")
    assert (
        "built for linux-riscv64 and will not be used here"
        in retinastream("engine", "import", tmp_path / "e.zip", "--trust")[2]
    )


def test_export_replaces_nothing_unasked(retinastream, cache, three, tmp_path):
    target = tmp_path / "e.zip"
    target.write_text("mine")
    code, _, err = retinastream("engine", "export", "r50", target)
    assert code == 2
    assert "--overwrite" in err
    assert target.read_text() == "mine"
    assert retinastream("engine", "export", "r50", target, "--overwrite")[0] == 0
    assert zipfile.is_zipfile(target)
    assert retinastream("engine", "export", "r50", tmp_path / "e.tar")[0] == 2


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)


@pytest.fixture
def exported(retinastream, cache, three, tmp_path):
    retinastream("engine", "export", "r50", tmp_path / "good.zip")
    retinastream("engine", "prune", "--all")
    with zipfile.ZipFile(tmp_path / "good.zip") as file:
        return {name.rpartition(".")[2]: file.read(name) for name in file.namelist()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda e: {"a__plan": e["plan"]}, "holds 0 files that end in .json", id="no sidecar"),
        pytest.param(lambda e: {"a__json": e["json"]}, "holds 0 files that end in .plan", id="no plan"),
        pytest.param(
            lambda e: {"a__json": e["json"], "a__plan": e["plan"], "b__plan": b"x"}, "holds 2 files", id="two plans"
        ),
        pytest.param(lambda e: {"a__json": e["json"], "a__plan": e["plan"][:-1]}, "is not the one", id="truncated"),
        pytest.param(
            lambda e: {"a__json": e["json"], "a__plan": e["plan"][:-1] + b"!"}, "is not the one", id="changed"
        ),
        pytest.param(
            lambda e: {"a__json": e["json"].replace(b"r50", b"r51"), "a__plan": e["plan"]}, "was changed", id="edited"
        ),
    ],
)
def test_an_archive_that_is_not_as_exported_is_refused(retinastream, cache, exported, tmp_path, change, said):
    archive(tmp_path / "bad.zip", **change(exported))
    code, _, err = retinastream("engine", "import", tmp_path / "bad.zip", "--trust")
    assert code == 3
    assert said in err
    assert cache.entries() == []


def test_a_plan_of_another_size_is_not_even_unpacked(retinastream, cache, exported, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.json", exported["json"])
        file.writestr("a.plan", bytes(50_000_000))
    read = []
    real = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, what, *a: (read.append(what), real(self, what, *a))[1])
    code, _, err = retinastream("engine", "import", tmp_path / "bomb.zip", "--trust")
    assert code == 3
    assert "is not the one" in err
    assert [info.filename for info in read] == ["a.json"]


def test_names_in_an_archive_lead_nowhere(retinastream, cache, exported, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("../../escaped.plan", exported["plan"])
        file.writestr("/abs.json", exported["json"])
    (tmp_path / "odd.zip").write_bytes(content.getvalue())
    assert retinastream("engine", "import", tmp_path / "odd.zip", "--trust")[0] == 0
    assert [p.name[:32] for p in cache.folder.glob("*.plan")] == [cache.entries()[0].digest[:32]]
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        pytest.param("x.zip", b"no archive", 3, "no archive of an engine", id="no zip"),
        pytest.param("x.plan", b"ftrt", 3, "has no sidecar: x.json is not beside it", id="plan alone"),
        pytest.param("y.zip", None, 1, "there is no such file or folder", id="missing"),
    ],
)
def test_a_source_that_is_no_export_is_refused(retinastream, cache, tmp_path, name, content, code, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    got, _, err = retinastream("engine", "import", tmp_path / name, "--trust")
    assert got == code
    assert said in err


def test_an_export_that_cannot_be_written_says_so(retinastream, cache, three, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = retinastream("engine", "export", "r50", tmp_path / "file" / "e.zip")
    assert code == 3
    assert "give another place" in err
