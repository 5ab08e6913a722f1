"""The five-level network of the paper: its levels, its anchors, its checkpoints, and its exported form."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from retinastream.engines.openvino_core import openvino_core  # noqa: E402
from retinastream.errors import ModelError, UsageError  # noqa: E402
from retinastream.models.architectures import ALL_ARCHITECTURES, create_network, spec_of  # noqa: E402
from retinastream.models.checkpoints import load_checkpoint, read_state  # noqa: E402
from retinastream.models.network import RetinaFace  # noqa: E402
from retinastream.models.network_paper import PAPER_ARCHITECTURES, PaperRetinaFace  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.models.spec_registry import SPECS, read_spec  # noqa: E402

LIGHT_PAPER = "paper-mobilenetv1-x0.25"
SPEC = SPECS["retinaface-paper"]
# Seconds each, and memory by the gigabyte.
DEEP, DEEPEST = (pytest.param(name, marks=pytest.mark.slow) for name in ("paper-resnet101", "paper-resnet152"))


def noise(batch, height, width, seed=3):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --- anchors ---------------------------------------------------------------------------------------------------------


def test_a_square_of_640_has_102300_anchors_three_quarters_of_them_on_the_finest_level():
    assert SPEC.anchor_count(640, 640) == 102_300
    finest = DetectorSpec(strides=SPEC.strides[:1], anchor_sizes=SPEC.anchor_sizes[:1]).anchor_count(640, 640)
    assert finest == 76_800
    assert finest / 102_300 == pytest.approx(0.75, abs=0.001)


def test_anchor_sizes_are_those_of_the_published_table():
    published = [
        [16, 20.16, 25.40],
        [32, 40.32, 50.80],
        [64, 80.63, 101.59],
        [128, 161.26, 203.19],  # 161.2699, which the paper cuts off instead of rounding
        [256, 322.54, 406.37],
    ]
    np.testing.assert_allclose(SPEC.anchor_sizes, published, atol=0.01)
    assert SPEC.strides == (4, 8, 16, 32, 64)
    assert read_spec("retinaface-paper") is SPEC
    assert DetectorSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


# --- network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [LIGHT_PAPER, "paper-resnet50", DEEPEST])
def test_five_maps_have_the_sizes_that_the_spec_computes(architecture):
    network = PaperRetinaFace(architecture).eval()
    assert network.strides == SPEC.strides
    for height, width in ((64, 128), (96, 160)):
        with torch.no_grad():
            maps = network(noise(1, height, width))
        expected = [(1, 48, rows, columns) for rows, columns in SPEC.feature_sizes(height, width)]
        assert [tuple(m.shape) for m in maps] == expected
        assert all(bool(m.isfinite().all()) for m in maps)


# What the publishers of the classification networks count, less the 2,049,000 of the classifier.
@pytest.mark.parametrize(
    ("architecture", "backbone"),
    [("paper-resnet50", 23_508_032), ("paper-resnet101", 42_500_160), ("paper-resnet152", 58_143_808)],
)
def test_backbones_have_the_depth_of_their_name(architecture, backbone):
    with torch.device("meta"):
        body = PAPER_ARCHITECTURES[architecture].backbone()
    assert sum(p.numel() for p in body.parameters()) == backbone


@pytest.mark.parametrize("name", ["mobilenetv1-x0.25", "resnet18"])
def test_the_light_network_sees_the_last_three_of_the_four_backbone_maps(name):
    body = RetinaFace(name).body.eval()
    images = noise(1, 64, 96)
    with torch.no_grad():
        four, three = body.levels(images), body(images)
    assert [tuple(m.shape[1:]) for m in four] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(body.level_channels, (4, 8, 16, 32), strict=True)
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(four[1:], three, strict=True))


@pytest.mark.parametrize(
    ("changed", "levels"),
    [
        pytest.param(0, [0], id="C2 reaches P2 only"),
        pytest.param(1, [0, 1], id="C3 reaches P2 and P3"),
        pytest.param(2, [0, 1, 2], id="C4 reaches P2 to P4"),
        pytest.param(3, [0, 1, 2, 3, 4], id="C5 reaches every level, P6 directly"),
    ],
)
def test_the_pyramid_passes_information_downwards(changed, levels):
    network = PaperRetinaFace(LIGHT_PAPER).eval()
    with torch.no_grad():
        maps = list(network.body.levels(noise(1, 64, 64)))
        before = network.fpn(maps)
        maps[changed] = maps[changed] + 1.0
        after = network.fpn(maps)
    assert [i for i in range(5) if not torch.equal(before[i], after[i])] == levels


def test_a_level_is_its_lateral_plus_the_doubled_level_above_then_merged():
    network = PaperRetinaFace(LIGHT_PAPER).eval()
    with torch.no_grad():
        maps = network.body.levels(noise(1, 64, 128))
        found = network.fpn(maps)
        p5 = network.fpn.lateral[3](maps[3])
        p4 = network.fpn.merge[2](network.fpn.lateral[2](maps[2]) + p5.repeat_interleave(2, 2).repeat_interleave(2, 3))
        p6 = network.fpn.coarsest(maps[3])
    for ours, theirs in zip(found[2:], (p4, p5, p6), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_context_modules_are_independent():
    network = PaperRetinaFace(LIGHT_PAPER).eval()
    images = noise(1, 64, 64)
    with torch.no_grad():
        before = network.features(images)
        network.context[2].conv3X3[0].weight += 0.1
        after = network.features(images)
    assert [i for i in range(5) if not torch.equal(before[i], after[i])] == [2]


def test_both_layouts_hold_the_same_numbers_in_the_documented_order():
    network = PaperRetinaFace(LIGHT_PAPER).eval()
    images = noise(2, 64, 128)
    with torch.no_grad():
        fused = [m.numpy() for m in network(images)]
        network.layout = "classic"
        loc, conf, landms = (m.numpy() for m in network(images))
    assert conf.shape == (2, SPEC.anchor_count(64, 128), 2)
    index = 0
    for level in fused:
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                cell = level[:, :, row, column]
                for size in range(3):
                    face = 1 / (1 + np.exp(cell[:, 2 * size] - cell[:, 2 * size + 1]))
                    np.testing.assert_allclose(conf[:, index, 1], face, atol=1e-6)
                    np.testing.assert_array_equal(loc[:, index], cell[:, 6 + 4 * size : 10 + 4 * size])
                    np.testing.assert_array_equal(landms[:, index], cell[:, 18 + 10 * size : 28 + 10 * size])
                    index += 1
    assert index == conf.shape[1]


def test_same_seed_gives_the_same_weights():
    first, second, other = (PaperRetinaFace(LIGHT_PAPER, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fpn.merge.1.0.weight"], other["fpn.merge.1.0.weight"])


@pytest.mark.parametrize("architecture", ["mobilenetv1-x0.25", LIGHT_PAPER])
@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_with_a_prior_every_anchor_starts_with_about_that_score(architecture, prior):
    # In training mode, as it is used: normalised features are of size 1, whatever the random weights.
    network = create_network(architecture, face_prior=prior, layout="classic").train()
    plain = create_network(architecture, layout="classic").train()
    with torch.no_grad():
        scores, without = (n(noise(2, 128, 128))[1][..., 1] for n in (network, plain))
    assert float(scores.mean()) == pytest.approx(prior, rel=0.1)
    assert float(scores.std()) < 0.5 * prior
    assert float(without.std()) > 0.1


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1])
def test_priors_that_are_no_chance_are_refused(prior):
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        create_network(LIGHT_PAPER, face_prior=prior)


# --- by name ---------------------------------------------------------------------------------------------------------


def test_every_name_builds_its_network_and_has_a_spec_of_the_same_strides():
    assert {"mobilenetv1-x0.25", "resnet50", "paper-resnet50", "paper-resnet152"} <= set(ALL_ARCHITECTURES)
    for name in ("mobilenetv1-x0.25", "resnet18", LIGHT_PAPER):
        network = create_network(name, seed=4)
        assert network.architecture == name
        assert network.strides == spec_of(name).strides
        assert {len(sizes) for sizes in spec_of(name).anchor_sizes} == {network.anchors_per_cell}
    assert torch.equal(
        create_network("resnet18", seed=4).body.conv1.weight, RetinaFace("resnet18", seed=4).body.conv1.weight
    )


def test_names_that_mean_nothing_here_are_refused():
    for build in (create_network, spec_of, PaperRetinaFace):
        with pytest.raises(ModelError, match=r"unknown architecture 'vgg16'; known are .*paper-resnet50"):
            build("vgg16")
    with pytest.raises(ModelError, match="resnet50 has no deformable convolutions"):
        create_network("resnet50", deformable=True)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture", [LIGHT_PAPER, pytest.param("paper-resnet50", marks=pytest.mark.slow), DEEP, DEEPEST]
)
def test_a_plain_state_dict_is_recognised(architecture, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(create_network(architecture).state_dict(), path)
    loaded = load_checkpoint(path, spec=SPEC)
    assert (loaded.architecture, loaded.spec) == (architecture, SPEC)
    assert isinstance(loaded.network, PaperRetinaFace)
    with pytest.raises(ModelError, match=f"holds weights of {architecture}.*'resnet18'"):
        load_checkpoint(path, spec=SPEC, architecture="resnet18")


def test_a_plain_state_dict_asks_for_its_spec_and_names_the_usual_one(tmp_path):
    torch.save(create_network(LIGHT_PAPER).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ModelError, match="--spec retinaface-paper"):
        load_checkpoint(tmp_path / "net.pth")


def test_a_missing_tensor_is_named(tmp_path):
    state = dict(create_network(LIGHT_PAPER).state_dict())
    del state["context.4.conv3X3.0.weight"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"do not fit .*context\.4\.conv3X3"):
        load_checkpoint(tmp_path / "net.pth", spec=SPEC)


def training_checkpoint(path, architecture, spec):
    """Write what a training run does: the weights of its last step, and beside them their moving average."""
    average = create_network(architecture, seed=7)
    content = {
        "format": 1,
        "step": 12,
        "architecture": architecture,
        "spec": spec,
        "config": {"model": {"architecture": architecture}},
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "network": create_network(architecture, seed=6).state_dict(),
        "state_dict": average.state_dict(),
    }
    torch.save(content, path)
    return average


@pytest.mark.parametrize(
    ("architecture", "spec"),
    [(LIGHT_PAPER, SPEC), ("mobilenetv1-x0.25", SPECS["retinaface-light-10-20"])],
    ids=["paper", "light with other anchors"],
)
def test_a_training_checkpoint_brings_its_own_spec_and_its_moving_average(architecture, spec, tmp_path):
    average = training_checkpoint(tmp_path / "best.pt", architecture, spec.to_dict())
    loaded = load_checkpoint(tmp_path / "best.pt")
    assert (loaded.architecture, loaded.spec) == (architecture, spec)
    for state in (loaded.network.state_dict(), read_state(tmp_path / "best.pt")):
        assert all(torch.equal(state[name], value) for name, value in average.state_dict().items())
    assert load_checkpoint(tmp_path / "best.pt", spec=spec).spec == spec
    with pytest.raises(ModelError, match=r"a checkpoint of a training run, trained with anchors.*leave it out"):
        load_checkpoint(tmp_path / "best.pt", spec=SPECS["retinaface-light"])


def test_a_spec_that_cannot_be_read_is_refused(tmp_path):
    training_checkpoint(tmp_path / "best.pt", LIGHT_PAPER, {"stride": [4]})
    with pytest.raises(ModelError, match=r"the spec inside .*best\.pt cannot be read .*'stride'"):
        load_checkpoint(tmp_path / "best.pt")


def test_a_training_checkpoint_is_exported_once_and_needs_no_spec(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.zoo import resolve_model

    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    training_checkpoint(tmp_path / "best.pt", LIGHT_PAPER, SPEC.to_dict())
    model = resolve_model(tmp_path / "best.pt")
    assert (model.name, model.spec, model.output_names[0]) == ("best", SPEC, "head_4")
    written = model.path.stat().st_mtime_ns
    assert resolve_model(tmp_path / "best.pt") == model
    assert model.path.stat().st_mtime_ns == written
    training_checkpoint(tmp_path / "best.pt", "mobilenetv1-x0.25", SPECS["retinaface-light"].to_dict())
    assert resolve_model(tmp_path / "best.pt").spec == SPECS["retinaface-light"]


# --- export ----------------------------------------------------------------------------------------------------------


def outputs_of(runtime, model, images):
    engine = pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    if runtime == "onnxruntime":
        session = engine.InferenceSession(model.path, providers=["CPUExecutionProvider"])
        return session.run(list(model.output_names), {model.input_name: images})
    compiled = openvino_core(engine).compile_model(model.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({model.input_name: images})
    return [found[name] for name in model.output_names]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layout", ["fused", "classic"])
@pytest.mark.parametrize("architecture", [LIGHT_PAPER, pytest.param("paper-resnet50", marks=pytest.mark.slow)])
def test_the_exported_file_agrees_with_torch_at_any_size(architecture, layout, runtime, tmp_path):
    pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.export import export_network
    from retinastream.models.onnx_file import read_onnx

    network = create_network(architecture, layout=layout, seed=3).eval()
    model = read_onnx(export_network(network, SPEC, tmp_path / "net.onnx", layout))
    assert model.spec == DetectorSpec.from_dict({**SPEC.to_dict(), "output_layout": layout})
    assert model.input_shape == (None, 3, None, None)
    if layout == "fused":
        assert model.output_names == ("head_4", "head_8", "head_16", "head_32", "head_64")
    for batch, height, width in ((1, 128, 192), (2, 64, 96)):
        images = noise(batch, height, width)
        with torch.no_grad():
            expected = network(images)
        for ours, theirs in zip(expected, outputs_of(runtime, model, images.numpy()), strict=True):
            assert theirs.shape == tuple(ours.shape)
            # Random weights let values grow with depth, so the tolerance is relative to them.
            limit = 1e-4 if architecture == LIGHT_PAPER else 1e-3
            assert float(np.abs(theirs - ours.numpy()).max()) <= limit * max(1.0, float(ours.abs().max()))


@pytest.mark.parametrize("spec", [SPECS["retinaface-light"], DetectorSpec(SPEC.strides, ((16.0,),) * 5)])
def test_a_spec_of_other_strides_or_anchors_is_refused(spec, tmp_path):
    pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.export import export_network

    with pytest.raises(ModelError, match=r"this network has strides \(4, 8, 16, 32, 64\) and 3 anchor sizes"):
        export_network(create_network(LIGHT_PAPER), spec, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_five_level_file_that_says_nothing_needs_the_spec_and_then_is_read(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.export import export_network
    from retinastream.models.onnx_file import read_onnx

    path = export_network(create_network(LIGHT_PAPER), SPEC, tmp_path / "net.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ModelError, match="give its spec, such as retinaface-paper"):
        read_onnx(path)
    assert read_onnx(path, spec=SPEC).spec == SPEC
