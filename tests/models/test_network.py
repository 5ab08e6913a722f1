"""The torch network: names and shapes of its parameters, and what its two layouts hold."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from retinastream.errors import ModelError  # noqa: E402
from retinastream.models.network import ARCHITECTURES, RetinaFace  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402

DATA = Path(os.environ.get("RETINASTREAM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHECKPOINT = DATA / "weights" / "mobilenet0.25_Final.pth"


@pytest.mark.data
@pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not in the test data")
def test_public_checkpoint_fits_every_name_and_shape():
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    network = RetinaFace("mobilenetv1-x0.25")
    network.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in network.parameters()) == 426_608


def test_narrow_layers_leak_and_wide_ones_do_not():
    def slopes(network):
        return {layer.negative_slope for layer in network.modules() if isinstance(layer, torch.nn.LeakyReLU)}

    narrow = RetinaFace("mobilenetv1-x0.25")
    assert slopes(narrow.fpn) | slopes(narrow.ssh1) == {0.1}
    wide = RetinaFace("mobilenetv1-x0.5")
    assert slopes(wide.fpn) | slopes(wide.ssh1) == {0.0}
    assert slopes(wide.body) == {0.1}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_fused_maps_have_the_sizes_that_the_spec_computes(architecture):
    network = RetinaFace(architecture).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 64, 96))
    expected = [(1, 32, rows, columns) for rows, columns in DetectorSpec().feature_sizes(64, 96)]
    assert [tuple(m.shape) for m in maps] == expected


def test_both_layouts_hold_the_same_numbers_in_the_documented_order():
    network = RetinaFace(anchors_per_cell=2).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * 50
    with torch.no_grad():
        fused = [m.numpy() for m in network(images)]
        network.layout = "classic"
        loc, conf, landms = (m.numpy() for m in network(images))
    assert conf.shape == (2, DetectorSpec().anchor_count(64, 96), 2)

    index = 0
    for level in fused:
        rows, columns = level.shape[2:]
        for row in range(rows):
            for column in range(columns):
                cell = level[:, :, row, column]
                for size in range(2):
                    logits = cell[:, 2 * size : 2 * size + 2]
                    face = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
                    np.testing.assert_allclose(conf[:, index, 1], face, atol=1e-6)
                    np.testing.assert_array_equal(loc[:, index], cell[:, 4 + 4 * size : 8 + 4 * size])
                    np.testing.assert_array_equal(landms[:, index], cell[:, 12 + 10 * size : 22 + 10 * size])
                    index += 1
    assert index == conf.shape[1]


def test_same_seed_gives_the_same_weights():
    first, second, other = (RetinaFace(seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fpn.merge1.0.weight"], other["fpn.merge1.0.weight"])


def test_unknown_architecture_names_the_known_ones():
    with pytest.raises(ModelError, match=r"'vgg16'.*mobilenetv1-x0\.25.*resnet50"):
        RetinaFace("vgg16")
