"""Training configurations: what is read, what is refused and in which words, and how two of them differ."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import UsageError
from retinastream.training.config_file import (
    change_config,
    changes_since,
    differences,
    load_config,
    parse_config,
)
from retinastream.training.loss import LIGHT_LOSS, PAPER_LOSS
from retinastream.training.matching import LIGHT, PAPER
from retinastream.training.schedule import LIGHT_MNET025, LIGHT_RESNET50
from retinastream.training.schedule import PAPER as PAPER_SCHEDULE

CONFIGS = Path(__file__).parents[2] / "configs"
LEAST = {"data": [{"labels": "faces.json"}]}


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "train.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def message(call, *arguments):
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("train-*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_that_ships_can_be_read(path):
    config = load_config(path)
    assert config.data[0].labels
    assert parse_config(config.plain(), "again") == config


@pytest.mark.parametrize(
    ("name", "matching", "loss", "schedule"),
    [
        ("train-mnet025", LIGHT, LIGHT_LOSS, LIGHT_MNET025),
        ("train-r50", LIGHT, LIGHT_LOSS, LIGHT_RESNET50),
        ("train-paper", PAPER, PAPER_LOSS, PAPER_SCHEDULE),
    ],
)
def test_the_recipes_that_ship_are_those_that_were_published(name, matching, loss, schedule):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.match_recipe() == matching
    assert config.loss_recipe() == loss
    assert config.schedule_recipe() == schedule


@pytest.mark.parametrize(
    ("text", "unknown", "suggested"),
    [
        ("data: [{labels: a}]\nshedule: {}", "'shedule'", "'schedule'"),
        ("data: [{labels: a}]\nschedule: {rat: 1}", "'schedule.rat'", "'rate'"),
        ("data: [{labels: a, image: b}]", "'data.0.image'", "'images'"),
        ("data: [{labels: a}]\naugmentation: {mosaik: 1}", "'augmentation.mosaik'", "'mosaic'"),
        ("data: [{labels: a}]\nevaluation: {data: {label: b}}", "'evaluation.data.label'", "'labels'"),
        ("data: [{labels: a}]\ndistillation: {teacher: a, recipe: {shar: 1}}", "'distillation.recipe.shar'", "'share'"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_known_one(write, text, unknown, suggested):
    path = write(text)
    told = message(load_config, path)
    assert str(path) in told
    assert f"unknown key {unknown}" in told
    assert f"did you mean {suggested}" in told


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("run: {batch: 8}", ["data is missing"]),
        ("data: []", ["data", "at least 1"]),
        ("data: [{labels: a}]\nrun: {batch: 0}", ["run.batch", "0"]),
        ("data: [{labels: a}]\nrun: {precision: f64}", ["run.precision", "f64", "bf16"]),
        ("data: [{labels: a}]\nmatching: {positive: 0.3, background: 0.5}", ["background 0.5", "positive 0.3"]),
        ("data: [{labels: a}]\nloss: {box_weight: -1}", ["box_weight -1"]),
        ("data: [{labels: a}]\nschedule: {epochs: 5, warmup_epochs: 6}", ["warmup_epochs 6"]),
        ("data: [{labels: a}]\nrun:", ["run is None", "expected keys", "batch", "seed"]),
        ("data: [{labels: a}]\nrun: {size: 64.5}", ["run.size: 64.5 is not", "[320, 640]"]),
        ("data: [{labels: a}]\nrun: {size: [[64, 4], [96]]}", ["run.size", "[640, 8]"]),
        ("data: [{labels: a}]\naugmentation: {crop: [1.0, 0.3]}", ["augmentation.crop", "the lower first"]),
        ("[a, b]", ["expected sections", "list"]),
        ("data: [", ["is not YAML"]),
    ],
)
def test_values_that_are_not_allowed_are_named(write, text, parts):
    path = write(text)
    told = message(load_config, path)
    assert all(part in told for part in (str(path), *parts)), told
    assert "Value error" not in told
    assert "tuple" not in told.lower()


def test_a_mistake_is_said_once(write):
    told = message(load_config, write("data: [{labels: a, weight: 0}]"))
    assert told.count("data") == told.count("is not allowed") == 1


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    assert f"{tmp_path} is a folder; expected a YAML file" in message(load_config, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    assert "nothing.yaml" in message(load_config, tmp_path / "nothing.yaml")


def test_changes_apply_on_top_of_the_file(write):
    path = write("data: [{labels: a}, {labels: b}]\nrun: {batch: 8, seed: 3}")
    changes = ["run.batch=16", "schedule.rate=1e-3", "data.1.weight=2", "schedule.drops=[3, 4]", "run.size=[320, 640]"]
    config = load_config(path, changes)
    assert (config.run.batch, config.run.seed) == (16, 3)
    assert config.schedule.rate == 0.001
    assert [source.weight for source in config.data] == [1, 2]
    assert config.schedule.drops == (3, 4)
    assert config.run.size == (320, 640)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("run.batch", "expected key=value"),
        ("=3", "expected key=value"),
        ("run.bach=3", "did you mean 'batch'"),
        ("data.7.weight=2", "no entry of a list of 1"),
        ("data.0.labels.x=2", "nothing below"),
        ("run.batch=[", "not YAML"),
        ("run.batch=many", "run.batch: 'many'"),
    ],
)
def test_a_change_that_cannot_be_applied_is_explained(write, change, part):
    assert part in message(load_config, write("data: [{labels: a}]"), [change])


def test_a_configuration_can_be_changed_after_it_was_read():
    config = parse_config(LEAST, "test")
    assert change_config(config, ["run.seed=7"]).run.seed == 7
    assert config.run.seed == 0


def test_differences_name_the_keys_that_changed_with_both_values():
    before = parse_config(LEAST, "test")
    after = change_config(before, ["run.batch=7", "evaluation={data: {labels: x}}", "data.0.weight=2"])
    found = differences(before.plain(), after.plain())
    assert "run.batch: 32 -> 7" in found
    assert any(line.startswith("evaluation: null -> {") for line in found)
    assert "data.0.weight: 1.0 -> 2.0" in found
    assert len(found) == 3
    assert differences(before.plain(), before.plain()) == []


def test_a_set_that_came_or_went_is_shown_as_a_whole():
    before = parse_config(LEAST, "test")
    [line] = differences(before.plain(), change_config(before, ["data=[{labels: faces.json}, {labels: b}]"]).plain())
    assert line.startswith('data: [{"labels": "faces.json"')


def test_a_key_that_an_older_version_did_not_have_is_no_change():
    config = parse_config(LEAST, "test")
    older = config.plain()
    del older["model"]["deformable"], older["data"][0]["held_out"]
    assert changes_since(older, config) == []
    assert changes_since(older, change_config(config, ["model.deformable=true"])) == ["model.deformable: false -> true"]


def test_a_key_that_only_an_older_version_had_is_shown():
    config = parse_config(LEAST, "test")
    older = {**config.plain(), "gone": 3}
    assert changes_since(older, config) == ['gone: 3 -> "(not there)"']


def test_the_hash_depends_on_values_and_not_on_their_order():
    one = parse_config({"data": [{"labels": "a", "weight": 2}], "run": {"seed": 1, "batch": 4}}, "test")
    other = parse_config({"run": {"batch": 4, "seed": 1}, "data": [{"weight": 2.0, "labels": "a"}]}, "test")
    assert one.sha256 == other.sha256
    assert one.sha256 != change_config(one, ["run.seed=2"]).sha256
