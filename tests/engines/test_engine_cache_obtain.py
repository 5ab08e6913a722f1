"""From a key to an engine that runs: kept, built, or built again once."""

import pytest
from kept_engines import keep, key, machine, plan, record

from retinastream.engines.cache.errors import EngineMissingError, PlanRejectedError
from retinastream.engines.cache.obtain import obtain
from retinastream.engines.cache.store import EngineCache


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


class Builder:
    """Counts its builds; each makes another plan."""

    def __init__(self):
        self.count = 0

    def __call__(self, build):
        self.count += 1
        return plan(100 + self.count), record()


def load(content, entry):
    """TensorRT, as far as the cache can tell: an engine, or None."""
    return ("engine", content[40]) if content.startswith(b"ftrt") else None


def refuses(*seeds):
    refused = {plan(seed) for seed in seeds}
    return lambda content, entry: None if content in refused else ("engine", content[40])


def test_nothing_kept_is_built_and_then_found(cache):
    build = Builder()
    first = obtain(cache, key(), load=load, build=build)
    assert (first.built, first.engine, first.remarks) == (
        True,
        ("engine", plan(101)[40]),
        ("no engine of this model is kept for this machine",),
    )
    second = obtain(cache, key(), load=load, build=build)
    assert (second.built, second.engine, second.remarks, build.count) == (False, first.engine, (), 1)


def test_a_changed_driver_is_remarked_and_nothing_is_built(cache):
    keep(cache)
    got = obtain(cache, key(machine=machine(driver_cuda="14.0")), load=load, build=pytest.fail)
    assert not got.built
    assert "driver was 13.1 and is 14.0" in got.remarks[0]


def test_building_that_is_not_allowed_says_why_it_would_be_needed(cache):
    keep(cache, key(machine=machine(tensorrt="10.16.1.11")))
    with pytest.raises(EngineMissingError, match=r"TensorRT was 10.16.1.11 and is 11.4.0.106.*engine build") as caught:
        obtain(cache, key(), load=load, build=pytest.fail, may_build=False)
    assert caught.value.exit_code == 3


def test_a_plan_that_is_not_taken_is_put_aside_and_built_again_once(cache):
    keep(cache)
    build = Builder()
    got = obtain(cache, key(), load=refuses(0), build=build)
    assert (got.built, build.count) == (True, 1)
    assert "TensorRT does not take the engine" in got.remarks[0]
    assert "was written by TensorRT 11.4.0.106" in got.remarks[0]
    assert cache.quarantined()[0].path.read_bytes() == plan()


def test_a_plan_that_is_not_taken_either_after_the_build_ends_it(cache):
    keep(cache)
    build = Builder()
    with pytest.raises(PlanRejectedError, match="was just built and cannot be used"):
        obtain(cache, key(), load=refuses(0, 101), build=build)
    assert build.count == 1
    assert len(cache.entries()) == 0


def test_a_damaged_plan_is_built_again(cache):
    entry = keep(cache)
    entry.plan_path.write_bytes(plan(1))
    got = obtain(cache, key(), load=load, build=Builder())
    assert got.built
    assert "SHA-256 differs" in got.remarks[0]


def test_a_linked_plan_is_built_again_and_the_link_goes_aside(cache, tmp_path):
    entry = keep(cache)
    entry.plan_path.rename(tmp_path / "theirs.plan")
    entry.plan_path.symlink_to(tmp_path / "theirs.plan")
    got = obtain(cache, key(), load=load, build=Builder())
    assert got.built
    assert "symbolic link" in got.remarks[0]
    assert not got.entry.plan_path.is_symlink()
    assert (tmp_path / "theirs.plan").read_bytes() == plan()


def test_a_damaged_plan_is_an_error_where_building_is_not_allowed(cache):
    entry = keep(cache)
    entry.plan_path.write_bytes(plan(1))
    with pytest.raises(EngineMissingError, match="SHA-256 differs"):
        obtain(cache, key(), load=load, build=pytest.fail, may_build=False)


def test_rebuild_builds_although_there_is_an_engine(cache):
    keep(cache)
    build = Builder()
    assert obtain(cache, key(), load=load, build=build, rebuild=True).built
    assert build.count == 1
    assert cache.read_verified_plan(cache.entries()[0]) == plan(101)


def test_what_the_builder_raises_goes_through_and_leaves_nothing(cache):
    def fails(build):
        build.scratch.joinpath("x").write_text("")
        raise MemoryError

    with pytest.raises(MemoryError):
        obtain(cache, key(), load=load, build=fails)
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]
