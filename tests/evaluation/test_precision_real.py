"""The bundled model in fp16 and int8 on photographs, calibrated with others."""

from dataclasses import replace

import pytest

pytest.importorskip("onnx", reason="onnx is not installed, and models are converted with it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, and models are calibrated on it")

from retinastream.engines.precision.half import to_fp16
from retinastream.engines.precision.quantise import Quantiser
from retinastream.evaluation.labelled_set import read_labelled_set
from retinastream.evaluation.precision_check import PrecisionGate
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.calibration_frames import CalibrationFrames


@pytest.mark.slow
@pytest.mark.data
def test_fp16_loses_a_tenth_of_a_point_at_most_and_int8_little(data, tmp_path):
    on = read_labelled_set(data / "facemask" / "boxes.json")
    on = replace(on, pictures=on.pictures[::4])
    model = resolve_model("mnet025")
    gate = PrecisionGate(model.path, on)
    half = gate.check(to_fp16(model.path, tmp_path / "half.onnx").path)
    assert half.passed, half.losses
    assert half.agreement["recall"] > 0.99
    pictures = CalibrationFrames([data / "train" / "images"], model, count=128)
    quantiser = Quantiser(model.path, pictures)
    # With all layers in int8, half of the pictures that are usual and a quarter of the set: half a point is chance.
    int8 = gate.check(quantiser.write(tmp_path / "int8.onnx", "entropy").path)
    assert int8.losses[0].points < 2.0
    naive = gate.check(Quantiser(model.path, pictures, equalised=False).write(tmp_path / "max.onnx", "max").path)
    assert naive.losses[0].points > 4, "what equalising and the choice of the range are for"
