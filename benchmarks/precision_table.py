"""What fp16 and int8 lose in average precision: the bundled model and the public checkpoint, on ONNX Runtime's CPU.

Converts both in every way, measures each file on the facemask set and on the restored WIDER FACE subset, and writes the
table into docs/engines.md, between its markers. A quarter of an hour on one core.

    python benchmarks/precision_table.py --data DATA --public mobilenet0.25_Final.pth --work FOLDER

Calibration pictures and the pictures that layers are judged on are of the training pack (``train/images``), which has
none of the pictures that are measured on. See benchmarks/model_card.py for what is in DATA and where the WIDER FACE
subset comes from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
from model_card import ROOT, write_between_markers

import retinastream.evaluation.precision_check as checks
from retinastream.engines.cpu import cpu_name
from retinastream.engines.precision.half import to_fp16
from retinastream.engines.precision.lint import lint
from retinastream.engines.precision.quantise import Quantiser
from retinastream.evaluation.auto_quantise import auto_quantise
from retinastream.evaluation.labelled_set import read_labelled_set
from retinastream.evaluation.wider_pictures import find_pictures
from retinastream.evaluation.wider_truth import SETTINGS, read_ground_truth
from retinastream.models.zoo import resolve_model
from retinastream.pipeline.calibration_frames import CalibrationFrames
from retinastream.pipeline.discover import Input

PAGE = ROOT / "docs" / "engines.md"
OURS = ROOT / "models" / "weights" / "mnet025.onnx"
BEGIN, END = "<!-- precision table: written by benchmarks/precision_table.py -->", "<!-- end of precision table -->"
CALIBRATED, JUDGED, PROBED = 256, 250, 8
MEASURES = ("facemask", *SETTINGS)


@dataclass(frozen=True)
class Row:
    """One file: how it was made, and its average precision on every set."""

    model: str
    precision: str
    made: str
    fp16_layers: int | None
    ap: dict[str, float]


def main() -> None:
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name, source in (("mnet025", str(OURS)), ("public mobilenet0.25", options.public)):
        rows += measure_model(name, str(resolve_model(source).path), options)
        print(*rows, sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    write_between_markers(options.output, report(rows), BEGIN, END)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--public", required=True, help="the public checkpoint, .pth or .onnx")
    parser.add_argument("--work", type=Path, required=True, help="folder for converted models and restored pictures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure_model(name: str, source: str, options: Any) -> list[Row]:
    files = dict(convert(name, source, options))
    found: dict[str, dict[str, float]] = {how: {} for how in ("f32", *files)}
    for on in test_sets(options.data, options.work):
        gate = checks.PrecisionGate(source, on, threads=options.threads)
        for how, (file, _) in files.items():
            for loss in gate.check(file).losses:
                key = "facemask" if loss.measure == "ap50" else loss.measure
                found["f32"][key], found[how][key] = loss.reference, loss.candidate
            print(name, how, found[how])
    precision = {how: how.split(",")[0] for how in found}
    return [
        Row(name, precision[how], how.partition(", ")[2], None if how == "f32" else files[how][1], ap)
        for how, ap in found.items()
    ]


def convert(name: str, source: str, options: Any) -> Iterator[tuple[str, tuple[Path, int | None]]]:
    """Make every file that is not there yet: how it is made -> the file, and how many of its layers are fp16."""
    stem = name.replace(" ", "_")
    half = options.work / f"{stem}.fp16.onnx"
    small = to_fp16(source, half, outside="round", overwrite=True).outside
    print(f"{name}: {sum(w.too_small for w in small)} weights below half precision were rounded")
    yield "fp16", (half, None)
    quantiser = Quantiser(source, calibration_pictures(source, options), outside="round", threads=options.threads)
    seen = quantiser.calibration
    print(f"{name}: calibrated with {seen.pictures} pictures, {seen.with_faces} of them with faces")
    bare = Quantiser(
        source, calibration_pictures(source, options), outside="round", equalised=False, threads=options.threads
    )
    plain: dict[str, Callable[[Path], Any]] = {
        "int8, all layers, max": lambda out: bare.write(out, "max", overwrite=True),
        "int8, all layers, entropy": lambda out: bare.write(out, "entropy", overwrite=True),
        "int8, all layers, entropy, equalised": lambda out: quantiser.write(out, "entropy", overwrite=True),
    }
    for how, make in plain.items():
        out = options.work / f"{stem}.{how.replace(', ', '_').replace(' ', '_')}.onnx"
        make(out)
        yield how, (out, 0)
    out = options.work / f"{stem}.int8_auto.onnx"
    judged = Input("images", tuple(judge_pictures(options.data)), "training pack")
    gate = checks.PrecisionGate(source, judged, threads=options.threads)
    probe = CalibrationFrames([options.data / "train" / "images"], resolve_model(source), count=PROBED)
    result = auto_quantise(quantiser, out, gate, probe, threads=options.threads, overwrite=True)
    out.with_suffix(".json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    print(f"{name}: auto chose {result.model.method}, left {result.search.left}, {result.search.trials}")
    yield f"int8, auto ({result.model.method})", (out, len(result.search.left))
    for file in options.work.glob(f"{stem}*.onnx"):
        assert not lint(file), f"{file}: {lint(file)}"


def calibration_pictures(source: str, options: Any) -> CalibrationFrames:
    return CalibrationFrames([options.data / "train" / "images"], resolve_model(source), count=CALIBRATED)


def judge_pictures(data: Path) -> list[Path]:
    """Pictures of the training pack with faces, evenly chosen, other than those for calibration and ranking."""
    files = sorted((data / "train" / "images").iterdir())
    labels = json.loads((data / "train" / "labels.json").read_text())
    stride = len(files) // CALIBRATED
    others = [file for index, file in enumerate(files) if index % stride and labels[file.name]["faces"]]
    return others[:: len(others) // JUDGED][:JUDGED]


def test_sets(data: Path, work: Path) -> Iterator[checks.CheckSet]:
    yield read_labelled_set(data / "facemask" / "boxes.json")
    restored = work / "wider"
    subset = data / "widerface" / "val_subset_416"
    for name, entry in json.loads((subset / "heights_inferred.json").read_text())["images"].items():
        target = restored / entry["event"] / f"{name}.png"
        if not entry["use"] or target.is_file():
            continue
        size = (1024, round(entry["inferred_height"]))
        target.parent.mkdir(parents=True, exist_ok=True)
        stretched = cv2.imread(str(subset / f"{name}.jpg"))
        cv2.imwrite(str(target), cv2.resize(stretched, size, interpolation=cv2.INTER_LINEAR))
    truth = read_ground_truth(data / "widerface")
    yield checks.WiderSet(truth, find_pictures(restored, truth))


def report(rows: list[Row]) -> str:
    head = "| model | precision | made with | layers in fp16 | facemask | WIDER easy | medium | hard |"
    lines = [f"Measured on ONNX Runtime, {cpu_name()}; native size, average precision at IoU 0.5.", "", head]
    lines.append("|---" * 8 + "|")
    for row in rows:
        whole = next(other for other in rows if other.model == row.model and other.precision == "f32")
        layers = {None: "-"}.get(row.fp16_layers, str(row.fp16_layers))
        cells = [_cell(row.ap[key], row.ap[key] - whole.ap[key], row is whole) for key in MEASURES]
        lines.append(f"| {' | '.join([row.model, row.precision, row.made or '-', layers, *cells])} |")
    return "\n".join([*lines, ""])


def _cell(ap: float, change: float, reference: bool) -> str:
    return f"{ap:.4f}" if reference else f"{ap:.4f} ({100 * change:+.2f})"


if __name__ == "__main__":
    main()
