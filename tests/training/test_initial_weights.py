"""Where weights start: which tensors are taken from a file, and what happens when they do not fit."""

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.errors import ModelError  # noqa: E402
from retinastream.models.architectures import create_network  # noqa: E402
from retinastream.training.initial_weights import load_backbone, load_network  # noqa: E402


def classifier(architecture, path, prefix="module.", **more):
    """Write what ImageNet training leaves behind: a backbone under other names, and its classifier."""
    body = create_network(architecture, seed=5).body.state_dict()
    state = {f"{prefix}{name}": value for name, value in body.items()}
    state |= {f"{prefix}fc.weight": torch.zeros(10, 4), f"{prefix}fc.bias": torch.zeros(10), **more}
    torch.save({"state_dict": state, "epoch": 3}, path)
    return body


@pytest.mark.parametrize("prefix", ["module.", "", "module.model."])
@pytest.mark.parametrize("architecture", ["mobilenetv1-x0.25", "resnet18"])
def test_the_backbone_is_taken_and_the_rest_left_alone(tmp_path, architecture, prefix):
    body = classifier(architecture, tmp_path / "imagenet.tar", prefix)
    network = create_network(architecture, seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_backbone(network, tmp_path / "imagenet.tar")
    after = network.state_dict()
    for name, value in body.items():
        assert torch.equal(after[f"body.{name}"], value)
    rest = [name for name in after if not name.startswith("body.")]
    assert all(torch.equal(after[name], before[name]) for name in rest)
    assert report.taken == tuple(f"body.{name}" for name in body)
    assert report.dropped == ("fc.weight", "fc.bias")
    assert report.untouched == tuple(rest)
    assert f"{len(body)} tensors taken" in str(report)


def test_a_backbone_of_another_width_is_named_with_both_shapes(tmp_path):
    classifier("mobilenetv1-x0.5", tmp_path / "wide.tar")
    with pytest.raises(ModelError, match=r"wide\.tar.*body\.stage1\.0\.0\.weight.*\(16, 3, 3, 3\).*\(8, 3, 3, 3\)"):
        load_backbone(create_network("mobilenetv1-x0.25"), tmp_path / "wide.tar")


def test_a_tensor_that_belongs_nowhere_is_not_dropped_silently(tmp_path):
    classifier("mobilenetv1-x0.25", tmp_path / "more.tar", **{"module.attention": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"body\.attention"):
        load_backbone(create_network("mobilenetv1-x0.25"), tmp_path / "more.tar")


def test_a_whole_network_is_taken_from_a_state_dict(tmp_path):
    network, other = create_network("mobilenetv1-x0.25", seed=1), create_network("mobilenetv1-x0.25", seed=2)
    torch.save(other.state_dict(), tmp_path / "whole.pth")
    report = load_network(network, tmp_path / "whole.pth")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in other.state_dict().items())
    assert report.untouched == ()


def test_a_whole_detector_is_no_backbone(tmp_path):
    torch.save(create_network("mobilenetv1-x0.25").state_dict(), tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"whole\.pth holds a whole detector.*model\.weights"):
        load_backbone(create_network("mobilenetv1-x0.25"), tmp_path / "whole.pth")


def test_weights_are_not_taken_from_onnx(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError, match=r"model\.onnx is ONNX.*give the checkpoint"):
        load_network(create_network("mobilenetv1-x0.25"), tmp_path / "model.onnx")


def test_of_a_training_checkpoint_the_moving_average_is_taken(tmp_path):
    network, average = create_network("mobilenetv1-x0.25", seed=1), create_network("mobilenetv1-x0.25", seed=2)
    torch.save({"state_dict": average.state_dict(), "network": network.state_dict(), "step": 3}, tmp_path / "best.pth")
    load_network(network, tmp_path / "best.pth")
    assert torch.equal(network.state_dict()["fpn.output1.0.weight"], average.state_dict()["fpn.output1.0.weight"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nothing\.tar does not exist"):
        load_backbone(create_network("mobilenetv1-x0.25"), tmp_path / "nothing.tar")


@pytest.mark.data
def test_the_published_imagenet_weights_fill_the_whole_backbone(data):
    path = data / "weights" / "mobilenetV1X0.25_pretrain.tar"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    network = create_network("mobilenetv1-x0.25")
    report = load_backbone(network, path)
    assert len(report.taken) == 162
    assert report.dropped == ("fc.weight", "fc.bias")
