"""What a key is made of, and which changes mean another engine."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_engines import H200, SHAPES, key, machine
from pydantic import ValidationError

from retinastream.engines.cache.key import EngineKey, Machine, ShapeRange

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.text(), VALUES, max_size=5)


def shuffled(value, order):
    """The same value with its names in another order, at every depth."""
    if isinstance(value, dict):
        names = order.permutation(list(value))
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


class _Order:
    def __init__(self, draw):
        self._draw = draw

    def permutation(self, names):
        return self._draw(st.permutations(names))


@settings(max_examples=40, derandomize=True)
@given(st.data(), MAPPINGS, MAPPINGS)
def test_order_of_names_does_not_matter_and_a_round_trip_changes_nothing(data, recipe, builder):
    order = _Order(data.draw)
    first = key(recipe=recipe, builder=builder)
    second = key(recipe=shuffled(recipe, order), builder=shuffled(builder, order))
    assert first.canonical == second.canonical
    assert first.digest == second.digest
    read = EngineKey.model_validate_json(first.canonical)
    assert (read, read.canonical, read.digest) == (first, first.canonical, first.digest)
    assert first.canonical.isascii()
    assert json.loads(first.canonical)["recipe"] == recipe


@settings(max_examples=40, derandomize=True)
@given(MAPPINGS, MAPPINGS)
def test_different_recipes_are_different_engines(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key(recipe=one).digest == key(recipe=other).digest) == same


CHANGES = {
    "graph": {"onnx_sha256": "cd" * 32},
    "precision": {"precision": "int8"},
    "recipe": {"recipe": {"tool": "another"}},
    "calibration": {"calibration_sha256": "ef" * 32},
    "shapes": {"profiles": ({"images": SHAPES.model_copy(update={"maximum": (8, 3, 736, 1280)})},)},
    "second profile": {"profiles": ({"images": SHAPES}, {"images": SHAPES})},
    "flags": {"builder": {"optimization_level": 5, "flags": ["STRONGLY_TYPED"]}},
    "hardware compatibility": {"hardware_compatibility": "same-cc"},
    "plugins": {"plugins": ("12" * 32,)},
    "schema": {"builder_schema": 2},
    "TensorRT build number": {"machine": machine(tensorrt="11.4.0.107")},
    "GPU": {"machine": machine(gpu="NVIDIA H100")},
    "compute capability": {"machine": machine(compute_capability=(10, 0))},
    "multiprocessors of a MIG slice": {"machine": machine(multiprocessors=16)},
    "memory": {"machine": machine(memory_gib=80)},
    "CUDA major": {"machine": machine(cuda_major=12)},
    "architecture": {"machine": machine(system="linux-aarch64")},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_each_of_these_changes_means_another_engine(change):
    assert key(**change).digest != key().digest


def test_changes_that_all_differ_give_digests_that_all_differ():
    digests = {key(**change).digest for change in CHANGES.values()} | {key().digest}
    assert len(digests) == len(CHANGES) + 1


def test_a_change_of_the_driver_keeps_the_digest_and_is_in_the_key():
    newer = key(machine=machine(driver_cuda="13.2"))
    assert newer.digest == key().digest
    assert newer.canonical != key().canonical


@pytest.mark.parametrize(
    ("level", "other", "shared"),
    [
        pytest.param("same-cc", machine(gpu="GH200", multiprocessors=144, memory_gib=96), True, id="same-cc: same"),
        pytest.param("same-cc", machine(compute_capability=(8, 9)), False, id="same-cc: another capability"),
        pytest.param("ampere+", machine(gpu="L4", compute_capability=(8, 9), memory_gib=24), True, id="ampere+: Ada"),
        pytest.param("ampere+", machine(gpu="T4", compute_capability=(7, 5)), False, id="ampere+: Turing"),
        pytest.param("ampere+", machine(tensorrt="10.16.1.11"), False, id="ampere+: another TensorRT"),
    ],
)
def test_a_plan_for_several_gpus_is_shared_as_far_as_its_level_goes(level, other, shared):
    here = key(hardware_compatibility=level)
    there = key(hardware_compatibility=level, machine=other)
    assert (here.digest == there.digest) == shared


def test_a_changed_copy_has_a_digest_of_its_own():
    one = key()
    assert one.digest != one.model_copy(update={"precision": "int8"}).digest == key(precision="int8").digest


def test_order_of_plugins_does_not_matter():
    assert key(plugins=("12" * 32, "34" * 32)).digest == key(plugins=("34" * 32, "12" * 32)).digest


def test_machine_is_described_from_what_the_driver_says():
    device = SimpleNamespace(
        name="NVIDIA H200", compute_capability=(9, 0), total_memory=139.81 * 2**30, multiprocessors=132
    )
    described = Machine.of(device, driver_cuda=(13, 1), tensorrt="11.4.0.106", cuda_major=13)
    assert described.model_copy(update={"system": H200.system}) == H200
    assert described.system.startswith("linux-")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"onnx_sha256": "no hash"}, id="no SHA-256"),
        pytest.param({"hardware_compatibility": "all"}, id="unknown level"),
        pytest.param({"flags": []}, id="unknown field"),
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        key(**wrong)


def test_shapes_are_written_short():
    assert str(SHAPES) == "1x3x736x1280..4x3x736x1280"
    assert str(ShapeRange(minimum=(1, 3), optimum=(1, 3), maximum=(1, 3))) == "1x3"
