"""A finished detector as teacher: the same answers as the network itself, whatever runs it and however it is stored."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from retinastream.engines.cpu import has_fast_bf16  # noqa: E402
from retinastream.errors import UsageError  # noqa: E402
from retinastream.models.network import RetinaFace  # noqa: E402
from retinastream.models.spec import DetectorSpec  # noqa: E402
from retinastream.training.distillation import DistillationRecipe, distillation_loss, face_margin  # noqa: E402
from retinastream.training.loss import Predictions, predictions_from_fused  # noqa: E402
from retinastream.training.teacher import (  # noqa: E402
    DenseTeacher,
    TorchTeacher,
    check_images,
    predictions_of,
    renormalise,
    to_bgr,
)

SPEC = DetectorSpec()
OTHER = replace(SPEC, channel_order="rgb", mean=(120.5, 110.0, 100.0), scale=1 / 64)
RUNTIMES = ["openvino", "onnxruntime"]


def pictures(seed=0, shape=(3, 64, 96)):
    """Smooth colours in whole numbers: (B, H, W, 3) uint8 BGR."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (shape[0], shape[1] // 8, shape[2] // 8, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


def normalised(bgr, spec=SPEC):
    values = bgr if spec.channel_order == "bgr" else bgr[..., ::-1]
    values = (values.astype(np.float64) - np.array(spec.mean)) * spec.scale
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))).float()


@pytest.fixture(scope="module")
def network():
    """What the fixture tiny_model was exported from."""
    return RetinaFace("mobilenetv1-x0.25", seed=1).eval()


def told_by(network, images):
    with torch.no_grad():
        return predictions_from_fused(network(images), SPEC)


def assert_same(found, wanted, tolerance=1e-3):
    torch.testing.assert_close(face_margin(found), face_margin(wanted), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.boxes, wanted.boxes, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.landmarks, wanted.landmarks, rtol=0, atol=tolerance)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("layout", ["fused", "classic"])
def test_a_file_of_either_layout_answers_as_the_network_does(tiny_model, network, runtime, layout):
    pytest.importorskip(runtime, reason=f"the runtime {runtime} is not installed")
    images = normalised(pictures())
    wanted = told_by(network, images)
    assert wanted.boxes.std() > 0.01  # otherwise any order of the anchors would do
    found = DenseTeacher(tiny_model[layout], SPEC, runtime=runtime, threads=1)(images)
    assert_same(found, wanted)
    for name in ("logits", "boxes", "landmarks"):
        values = getattr(found, name)
        assert values.dtype == torch.float32
        assert not values.requires_grad
        assert values.shape == getattr(wanted, name).shape


@pytest.mark.data
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_published_detector_answers_as_its_network_does_on_photographs(data, real_model, runtime):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, and pictures are read with it")
    pytest.importorskip(runtime, reason=f"the runtime {runtime} is not installed")
    from retinastream.models.checkpoints import load_checkpoint

    files = [p for p in sorted((data / "stills").iterdir()) if p.suffix.lower() in (".jpg", ".png")][:2]
    if not files:
        pytest.skip(f"there are no pictures in {data / 'stills'}")
    images = normalised(np.stack([cv2.resize(cv2.imread(str(f)), (320, 320)) for f in files]))
    loaded = load_checkpoint(data / "weights" / "mobilenet0.25_Final.pth")
    wanted = told_by(loaded.network, images)
    assert (torch.sigmoid(face_margin(wanted)) > 0.9).any()
    assert_same(DenseTeacher(real_model, loaded.spec, runtime=runtime, threads=1)(images), wanted)


@pytest.mark.skipif(not has_fast_bf16(), reason="this CPU computes no bfloat16")
def test_bf16_is_near_f32(tiny_model):
    pytest.importorskip("openvino", reason="the runtime openvino is not installed")
    images = normalised(pictures())
    exact = DenseTeacher(tiny_model["fused"], SPEC, runtime="openvino", threads=1)(images)
    rough = DenseTeacher(tiny_model["fused"], SPEC, runtime="openvino", precision="bf16", threads=1)(images)
    assert 0 < (exact.boxes - rough.boxes).abs().max() < 0.1 * exact.boxes.abs().max()


def test_answers_stay_as_they_are_when_the_next_batch_comes(tiny_model):
    teacher = DenseTeacher(tiny_model["fused"], SPEC, threads=1)
    first = teacher(normalised(pictures(seed=1)))
    kept = Predictions(first.logits.clone(), first.boxes.clone(), first.landmarks.clone())
    second = teacher(normalised(pictures(seed=2)))
    assert_same(first, kept, tolerance=0)
    assert (first.boxes - second.boxes).abs().max() > 0.01


def test_buffers_are_made_once_for_every_shape(tiny_model, monkeypatch):
    teacher = DenseTeacher(tiny_model["fused"], SPEC, threads=1)
    made, slot = [], teacher.engine.slot

    def count(*key, **options):
        made.append(key)
        return slot(*key, **options)

    monkeypatch.setattr(teacher.engine, "slot", count)
    for shape in ((2, 64, 96), (1, 32, 32), (2, 64, 96), (1, 32, 32)):
        assert len(teacher(normalised(pictures(shape=shape))).boxes) == shape[0]
    assert made == [(2, 64, 96), (1, 32, 32)]


def test_the_shapes_used_last_are_held(tiny_model):
    teacher = DenseTeacher(tiny_model["fused"], SPEC, threads=1)
    for width in (32, 64, 96, 128, 160, 192, 32, 224):
        teacher(normalised(pictures(shape=(1, 32, width))))
    assert [key[2] for key in teacher._slots] == [96, 128, 160, 192, 32, 224]


def test_colours_between_whole_numbers_are_rounded_where_the_runtime_takes_bytes(tiny_model, network):
    pytest.importorskip("openvino", reason="the runtime openvino is not installed")
    pytest.importorskip("onnxruntime", reason="the runtime onnxruntime is not installed")
    whole = pictures().clip(1, 254)
    offset = np.random.default_rng(3).uniform(-0.49, 0.49, whole.shape)
    images, rounded = normalised(whole + offset), normalised(whole)
    by_bytes = DenseTeacher(tiny_model["fused"], SPEC, runtime="openvino", threads=1)(images)
    by_floats = DenseTeacher(tiny_model["fused"], SPEC, runtime="onnxruntime", threads=1)(images)
    assert_same(by_bytes, told_by(network, rounded), tolerance=1e-4)
    assert_same(by_floats, told_by(network, images), tolerance=1e-4)
    assert (by_bytes.boxes - by_floats.boxes).abs().max() > 2e-4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_student_may_be_normalised_otherwise(tiny_model, network, runtime):
    pytest.importorskip(runtime, reason=f"the runtime {runtime} is not installed")
    bgr = pictures()
    found = DenseTeacher(tiny_model["fused"], OTHER, runtime=runtime, threads=1)(normalised(bgr, OTHER))
    assert_same(found, told_by(network, normalised(bgr)))
    by_torch = TorchTeacher(network, OTHER, network_spec=SPEC)(normalised(bgr, OTHER))
    assert_same(by_torch, told_by(network, normalised(bgr)))


@pytest.mark.parametrize("spec", [SPEC, OTHER], ids=["bgr", "rgb, scaled"])
def test_pictures_come_back_from_the_normalised_batch(spec):
    bgr = pictures()
    bgr[0, 0, 0], bgr[0, 0, 1] = 0, 255
    assert np.array_equal(to_bgr(normalised(bgr, spec), spec).numpy(), bgr)
    torch.testing.assert_close(
        renormalise(normalised(bgr, spec), spec, OTHER), normalised(bgr, OTHER), atol=1e-5, rtol=0
    )


def test_colours_outside_the_range_of_a_byte_are_clipped():
    images = torch.tensor([-300.0, 300.0])[:, None, None, None].expand(2, 3, 32, 32)
    assert to_bgr(images, SPEC).flatten(1).unique(dim=1).tolist() == [[0], [255]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"anchor_sizes": ((10.0, 20.0), (32.0, 64.0), (128.0, 256.0))}, "anchor sizes"),
        ({"strides": (4, 8, 16)}, "strides"),
        ({"variances": (0.1, 0.1)}, "variances"),
    ],
)
def test_a_teacher_of_other_anchors_is_refused_and_the_way_out_named(tiny_model, network, change, named):
    spec = replace(SPEC, **change)
    with pytest.raises(UsageError, match=rf"{named}.*train label --teacher"):
        DenseTeacher(tiny_model["fused"], spec)
    with pytest.raises(UsageError, match=rf"{named}.*train label --teacher"):
        TorchTeacher(network, spec, network_spec=SPEC)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 64, 40),
        torch.zeros(1, 3, 33, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(3, 64, 64),
        torch.zeros(0, 3, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    ],
    ids=lambda images: f"{tuple(images.shape)} {images.dtype}",
)
def test_what_is_no_batch_is_refused(images):
    with pytest.raises(UsageError, match="expected floating point"):
        check_images(images, SPEC)


def test_a_model_of_a_fixed_batch_is_run_in_parts(tiny_model, network, monkeypatch):
    teacher = DenseTeacher(tiny_model["fused"], SPEC, threads=1)
    monkeypatch.setattr(teacher, "_fixed", (2, 3, 64, None))
    images = normalised(pictures(shape=(4, 64, 96)))
    assert_same(teacher(images), told_by(network, images))
    assert list(teacher._slots) == [(2, 64, 96)]
    for wrong in ((3, 64, 96), (2, 96, 64)):
        with pytest.raises(UsageError, match=r"takes inputs of shape \(2, 3, 64, None\)"):
            teacher(normalised(pictures(shape=wrong)))


def test_a_closed_teacher_says_so(tiny_model):
    teacher = DenseTeacher(tiny_model["fused"], SPEC, runtime="openvino", threads=1)
    teacher(normalised(pictures()))
    teacher.close()
    with pytest.raises(UsageError, match="closed"):
        teacher(normalised(pictures()))


def test_a_network_at_hand_teaches_without_gradients_and_without_changing():
    network = RetinaFace("mobilenetv1-x0.25", seed=1).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = normalised(pictures())
    found = TorchTeacher(network, SPEC)(images)
    assert not found.logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.layout = "classic"
    assert_same(TorchTeacher(network, SPEC)(images), found, tolerance=1e-4)
    # The answers can stand in a loss whose backward pass keeps them.
    student = Predictions(*(torch.zeros_like(v).requires_grad_() for v in (found.logits, found.boxes, found.landmarks)))
    distillation_loss(student, found, DistillationRecipe(regress_above=0.0)).total.backward()
    assert student.boxes.grad.abs().sum() > 0


def test_autocast_gives_float32_near_the_exact_answer(network):
    images = normalised(pictures())
    exact = TorchTeacher(network, SPEC)(images)
    rough = TorchTeacher(network, SPEC, autocast=torch.bfloat16)(images)
    assert rough.boxes.dtype == torch.float32
    assert 0 < (exact.boxes - rough.boxes).abs().max() < 0.1 * exact.boxes.abs().max()


def test_probabilities_of_zero_and_one_have_finite_logits():
    score = torch.tensor([0.0, 0.25, 0.5, 1.0])
    classic = [torch.zeros(1, 4, 4), torch.stack([1 - score, score], dim=-1)[None], torch.zeros(1, 4, 10)]
    margin = face_margin(predictions_of(classic, SPEC))[0]
    assert margin[1:3].tolist() == pytest.approx([-np.log(3), 0.0], abs=1e-6)
    assert torch.softmax(predictions_of(classic, SPEC).logits, dim=-1)[0, 1, 1] == pytest.approx(0.25)
    assert margin[0].item() == pytest.approx(-13.8, abs=0.1)
    assert margin[3].item() == pytest.approx(13.8, abs=0.2)


@pytest.mark.gpu
def test_a_network_on_the_gpu_answers_as_on_the_cpu(network):
    images = normalised(pictures())
    wanted = told_by(network, images)
    found = TorchTeacher(RetinaFace("mobilenetv1-x0.25", seed=1).cuda(), SPEC)(images.cuda())
    assert found.boxes.is_cuda
    assert_same(Predictions(found.logits.cpu(), found.boxes.cpu(), found.landmarks.cpu()), wanted, tolerance=1e-2)


@pytest.mark.gpu
def test_an_engine_on_the_cpu_answers_on_the_device_of_the_images(tiny_model, network):
    images = normalised(pictures())
    found = DenseTeacher(tiny_model["fused"], SPEC, threads=1)(images.cuda())
    assert found.boxes.is_cuda
    assert_same(Predictions(found.logits.cpu(), found.boxes.cpu(), found.landmarks.cpu()), told_by(network, images))
