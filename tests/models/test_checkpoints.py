"""Checkpoints are recognised by content, and everything else is refused with a reason."""

import os
import pickle
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from retinastream.errors import ModelError  # noqa: E402
from retinastream.models.checkpoints import load_checkpoint  # noqa: E402
from retinastream.models.network import ARCHITECTURES, RetinaFace  # noqa: E402
from retinastream.models.onnx_graph import file_sha256  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.models.spec_registry import SPECS  # noqa: E402

DATA = Path(os.environ.get("RETINASTREAM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHECKPOINT = DATA / "weights" / "mobilenet0.25_Final.pth"
needs_data = pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not in the test data")


@pytest.mark.data
@needs_data
def test_public_checkpoint_is_recognised_whatever_its_name(tmp_path):
    renamed = tmp_path / "something.bin"
    shutil.copy(CHECKPOINT, renamed)
    network, spec, architecture, sha256 = load_checkpoint(renamed)
    assert (architecture, spec) == ("mobilenetv1-x0.25", DetectorSpec())
    assert sha256.startswith("2979b33f")
    assert not network.training


@pytest.mark.data
@needs_data
def test_same_name_and_shapes_with_other_weights_ask_for_the_spec(tmp_path):
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    state["BboxHead.0.conv1x1.bias"] += 0.25
    trap = tmp_path / CHECKPOINT.name
    torch.save(state, trap)
    with pytest.raises(ModelError, match="--spec") as raised:
        load_checkpoint(trap)
    assert file_sha256(trap) in str(raised.value)
    assert "10/20, 32/64, 128/256" in str(raised.value)
    other = SPECS["retinaface-light-10-20"]
    assert load_checkpoint(trap, spec=other).spec == other


@pytest.mark.data
@needs_data
def test_known_checkpoint_refuses_a_spec_that_contradicts_it():
    with pytest.raises(ModelError, match=r"is biubug6-mnet025 of the zoo.*leave it out"):
        load_checkpoint(CHECKPOINT, spec=SPECS["retinaface-light-10-20"])
    assert load_checkpoint(CHECKPOINT, spec=SPECS["retinaface-light"]).spec == DetectorSpec()


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_architecture_is_inferred_from_the_shapes(architecture, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(RetinaFace(architecture).state_dict(), path)
    assert load_checkpoint(path, spec=DetectorSpec()).architecture == architecture


def test_pyramid_width_and_anchor_count_are_inferred(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(RetinaFace(pyramid_channels=32, anchors_per_cell=3).state_dict(), path)
    network = load_checkpoint(path, spec=DetectorSpec()).network
    assert network.anchors_per_cell == 3
    assert network.fpn.output1[0].out_channels == 32


@pytest.mark.parametrize(
    ("what", "wrap"),
    [
        ("plain", lambda state: state),
        ("prefix of a data-parallel run", lambda state: {f"module.{key}": value for key, value in state.items()}),
        ("inside a training record", lambda state: {"epoch": 3, "state_dict": state}),
    ],
)
def test_weights_load_however_they_were_saved(what, wrap, tmp_path):
    original = RetinaFace(seed=9)
    path = tmp_path / "net.pth"
    torch.save(wrap(dict(original.state_dict())), path)
    loaded = load_checkpoint(path, spec=DetectorSpec()).network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in original.state_dict().items())


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_code_inside_a_pickle_is_refused_and_not_run(tmp_path):
    for path, save in ((tmp_path / "a.pth", torch.save), (tmp_path / "b.pth", _pickled)):
        save({"weight": Exploit(tmp_path / "ran")}, path)
        with pytest.raises(ModelError, match="holds Python code") as raised:
            load_checkpoint(path, spec=DetectorSpec())
        assert path.name in str(raised.value)
    assert not (tmp_path / "ran").exists()


def _pickled(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def saved(content):
    def write(path):
        torch.save(content, path)

    return write


def cut(path):
    torch.save(RetinaFace().state_dict(), path)
    path.write_bytes(path.read_bytes()[:50_000])


def without_a_layer(path):
    state = dict(RetinaFace().state_dict())
    del state["ssh2.conv3X3.0.weight"]
    torch.save(state, path)


def with_nan(path):
    state = RetinaFace().state_dict()
    state["fpn.merge1.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("what", "write", "message"),
    [
        ("missing", lambda path: None, "does not exist"),
        ("a folder", lambda path: path.mkdir(), "is a directory"),
        ("empty", lambda path: path.write_bytes(b""), "is empty"),
        ("text", lambda path: path.write_text("hello, these are no weights"), "not a complete PyTorch checkpoint"),
        ("random bytes", lambda path: path.write_bytes(bytes(range(256)) * 40), "not a complete PyTorch checkpoint"),
        ("cut short", cut, "not a complete PyTorch checkpoint"),
        ("a list", saved([1, 2, 3]), "holds no state dict"),
        ("an empty dict", saved({}), "holds no state dict"),
        ("another network", saved({"features.0.weight": torch.zeros(3)}), "not those of a RetinaFace"),
        ("a layer missing", without_a_layer, "do not fit .*ssh2"),
        ("weights that are not numbers", with_nan, "not a number"),
    ],
)
def test_unusable_files_are_refused_by_name(what, write, message, tmp_path):
    path = tmp_path / "given.pth"
    write(path)
    with pytest.raises(ModelError, match=message) as raised:
        load_checkpoint(path, spec=DetectorSpec())
    assert "given.pth" in str(raised.value)


def test_architecture_that_contradicts_the_weights_is_refused(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(RetinaFace().state_dict(), path)
    with pytest.raises(ModelError, match=r"holds weights of mobilenetv1-x0\.25.*'resnet18'"):
        load_checkpoint(path, spec=DetectorSpec(), architecture="resnet18")
