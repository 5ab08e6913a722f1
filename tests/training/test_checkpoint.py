"""Checkpoints: whole or not at all, refused when they are something else, named when they do not fit."""

import errno
import pickle

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import ModelError, OutputError, UsageError  # noqa: E402
from retinastream.training.checkpoint import (  # noqa: E402
    check_fits,
    checkpoint_name,
    prune,
    read_checkpoint,
    restore_rng,
    rng_state,
    saved_steps,
    state_sha256,
    write_checkpoint,
)

CONTENT = {
    "format": 1,
    "step": 3,
    "config": {"run": {"batch": 4, "precision": None}},
    "architecture": "mobilenetv1-x0.25",
    "data_sha256": "00",
    "network": {"a": torch.arange(6.0).reshape(2, 3)},
    "state_dict": {"a": torch.zeros(2, 3)},
    "optimiser": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "rng": {"cpu": torch.get_rng_state(), "cuda": []},
}


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / checkpoint_name(3)
    write_checkpoint(path, CONTENT)
    found = read_checkpoint(path)
    assert found["step"] == 3
    assert found["config"] == CONTENT["config"]
    assert torch.equal(found["network"]["a"], CONTENT["network"]["a"])
    assert torch.equal(found["optimiser"]["state"][0]["momentum_buffer"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003.pth"]


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail] unexpected pos 64 vs 0")],
    ids=["system", "torch"],
)
def test_a_write_that_fails_halfway_leaves_the_older_file_and_no_rest(tmp_path, monkeypatch, failure):
    path = tmp_path / "best.pth"
    write_checkpoint(path, CONTENT)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise failure

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"best\.pth could not be written.*older ones are untouched"):
        write_checkpoint(path, {**CONTENT, "step": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def test_only_the_latest_numbered_checkpoints_are_kept(tmp_path):
    for step in (5, 40, 300, 1000):
        (tmp_path / checkpoint_name(step)).touch()
    (tmp_path / "best.pth").touch()
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "step-00000300.pth", "step-00001000.pth"]
    assert [step for step, _ in saved_steps(tmp_path)] == [300, 1000]


class Trap:
    def __reduce__(self):
        return print, ("this must not run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    path = tmp_path / "trap.pth"
    torch.save({**CONTENT, "extra": Trap()}, path)
    with pytest.raises(UsageError, match=r"trap\.pth cannot be read"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match=r"trap\.pth cannot be read"):
        read_checkpoint(path)
    assert "must not run" not in capsys.readouterr().out


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UsageError, match="does not exist"):
        read_checkpoint(path)
    write_checkpoint(path, CONTENT)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match="cannot be read"):
        read_checkpoint(path)
    torch.save(CONTENT["network"], path)
    with pytest.raises(UsageError, match="lacks format, step"):
        read_checkpoint(path)
    torch.save({**CONTENT, "format": 99}, path)
    with pytest.raises(UsageError, match="format 99"):
        read_checkpoint(path)


WANTED = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("state", "parts"),
    [
        ({"a": torch.zeros(2, 3), "b": torch.zeros(5)}, ["b has shape (5,)", "(4,) in this network"]),
        ({"a": torch.zeros(3, 3), "b": torch.zeros(5)}, ["a has shape (3, 3)", "(2, 3)"]),
        ({"a": torch.zeros(2, 3)}, ["lacks b of shape (4,)"]),
        ({**WANTED, "c": torch.zeros(7)}, ["holds c of shape (7,)"]),
    ],
)
def test_the_first_tensor_of_another_architecture_is_named_with_both_shapes(state, parts):
    with pytest.raises(ModelError) as caught:
        check_fits("old.pth", state, WANTED)
    assert all(part in str(caught.value) for part in ["old.pth", *parts])


def test_equal_shapes_fit():
    check_fits("same.pth", dict(WANTED), WANTED)


def test_the_generator_goes_on_where_it_was():
    state = rng_state()
    first = torch.rand(4)
    torch.rand(10)
    restore_rng(state)
    assert torch.equal(torch.rand(4), first)


def test_the_hash_of_weights_sees_values_and_names_but_not_their_order_in_memory():
    weight = torch.arange(48.0).reshape(2, 3, 2, 4)
    one = state_sha256({"w": weight})
    assert one == state_sha256({"w": weight.to(memory_format=torch.channels_last)})
    assert one != state_sha256({"v": weight})
    assert one != state_sha256({"w": weight + 1})
