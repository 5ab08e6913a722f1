"""The figures of the model card: the weights that ship beside the public checkpoint, in f32 and bf16, on the same data.

Measures both on the facemask set, on the restored WIDER FACE subset and on the sample clip, compares what they find in
two videos, and writes the tables into the model card, between its markers. About ten minutes on two cores.

    python benchmarks/model_card.py --data DATA --public mobilenet0.25_Final.pth
    python benchmarks/model_card.py --data DATA --public mobilenet0.25_Final.pth --ours new.onnx --output card.md

DATA holds ``facemask/boxes.json``, ``widerface/`` and ``videos/``. WIDER FACE pictures may not be passed on and are not
to be had at full size here: the subset consists of copies that were stretched to 416x416, which are stretched back to
their width of 1024 before they are used. That is good for comparing two models and no figure to publish.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from retinastream import Detector, open_video
from retinastream.engines.cpu import cpu_name, has_fast_bf16
from retinastream.evaluation.agreement import Agreement, Rules, agreement
from retinastream.evaluation.labelled_set import LabelledPicture, read_labelled_set
from retinastream.evaluation.measures import Measures, measure
from retinastream.evaluation.predict import predict
from retinastream.evaluation.prediction_files import to_rows
from retinastream.evaluation.wider_face import evaluate
from retinastream.evaluation.wider_truth import SETTINGS, read_ground_truth
from retinastream.types import Faces

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "docs" / "models" / "mnet025.md"
OURS = ROOT / "models" / "weights" / "mnet025.onnx"
SAMPLE = ROOT / "tests" / "media" / "sample_4k.mp4"
BEGIN, END = "<!-- figures: written by benchmarks/model_card.py -->", "<!-- end of figures -->"

CROWD_CLIP, EMPTY_CLIP = "facenet_pytorch_video.mp4", "one-by-one-person-detection.mp4"
CROWD_RULES = Rules(score=0.5, reference_score=0.5, min_height=32)
EMPTY_RULES = Rules(score=0.6, reference_score=0.5)
# What the reference reports with at least this score is no face of its own, but it is not alone with it either.
DOUBTFUL = 0.1
# What is below this height is left out of the comparison of landmarks.
LANDMARK_HEIGHT = 40.0


@dataclass
class Figures:
    """Everything measured for one model in one precision."""

    facemask: Measures
    wider: dict[str, float]
    sample: Measures
    crowd: list[Faces]
    empty: list[Faces]


def main() -> None:
    options = _options()
    data: Path = options.data
    found: dict[tuple[str, str], Figures] = {}
    for precision in _precisions():
        for name, model in (("public", options.public), ("ours", options.ours)):
            print(f"{name} {precision}")
            found[name, precision] = measure_model(model, precision, data)
    text = report(found)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(_plain(found), indent=2) + "\n")
    write_between_markers(options.output, text)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--public", required=True, help="the public checkpoint, .pth or .onnx")
    parser.add_argument("--ours", default=str(OURS))
    parser.add_argument("--output", type=Path, default=CARD)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _precisions() -> tuple[str, ...]:
    return ("f32", "bf16") if has_fast_bf16() else ("f32",)


def measure_model(model: str, precision: str, data: Path) -> Figures:
    low = Detector(model, threshold=0.02, size="native", precision=precision, clip=False)
    high = Detector(model, threshold=0.5, size="native", precision=precision, clip=False)
    with low, high:
        facemask = read_labelled_set(data / "facemask" / "boxes.json")
        found = predict(low, [picture.path for picture in facemask.pictures])
        return Figures(
            facemask=measure(found, facemask),
            wider=wider_subset(low, data / "widerface"),
            sample=sample_clip(low),
            crowd=video(high, data / "videos" / CROWD_CLIP),
            empty=video(low, data / "videos" / EMPTY_CLIP),
        )


def video(detector: Detector, path: Path) -> list[Faces]:
    with open_video(path) as source:
        return list(detector.stream(source))


def wider_subset(detector: Detector, folder: Path) -> dict[str, float]:
    subset = folder / "val_subset_416"
    listed = json.loads((subset / "heights_inferred.json").read_text())["images"]
    usable = {name: entry for name, entry in listed.items() if entry["use"]}
    predictions: dict[str, dict[str, Any]] = {}
    for name, entry in usable.items():
        stretched = cv2.imread(str(subset / f"{name}.jpg"))
        size = (1024, round(entry["inferred_height"]))
        restored = cv2.resize(stretched, size, interpolation=cv2.INTER_LINEAR)
        predictions.setdefault(entry["event"], {})[name] = to_rows(detector(restored))
    truth = read_ground_truth(folder).only({(entry["event"], name) for name, entry in usable.items()})
    return evaluate(predictions, truth).ap


def sample_clip(detector: Detector) -> Measures:
    frames = json.loads(SAMPLE.with_suffix(".json").read_text())["frames"]
    return measure(video(detector, SAMPLE), [_as_picture(frame) for frame in frames])


def _as_picture(frame: dict[str, Any]) -> LabelledPicture:
    boxes = np.array(frame["boxes"], np.float32).reshape(-1, 4)
    return LabelledPicture(
        name=str(frame["index"]),
        path=SAMPLE,
        width=3840,
        height=2160,
        boxes=boxes,
        landmarks=np.array(frame["landmarks"], np.float32).reshape(-1, 5, 2),
        ignore=np.zeros(len(boxes), np.bool_),
        scores=np.ones(len(boxes), np.float32),
    )


def report(found: dict[tuple[str, str], Figures]) -> str:
    precisions = list(dict.fromkeys(precision for _, precision in found))
    columns = [(name, precision) for precision in precisions for name in ("public", "ours")]
    tables = [
        [f"Measured on {cpu_name()}; native size, boxes as decoded.", ""],
        table("average precision", columns, accuracy_rows(found, columns)),
        table("recall by face height, facemask, score 0.5", columns, recall_rows(found, columns)),
        table("against the public checkpoint in f32", columns, agreement_rows(found, columns)),
    ]
    return "\n".join(line for one in tables for line in one)


def table(title: str, columns: Sequence[tuple[str, str]], rows: Iterator[tuple[str, list[str]]]) -> list[str]:
    head = " | ".join(f"{name} {precision}" for name, precision in columns)
    lines = [f"| {title} | {head} |", "|---" * (len(columns) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows), ""]


def accuracy_rows(
    found: dict[tuple[str, str], Figures], columns: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, list[str]]]:
    def cells(value: Any) -> list[str]:
        return [f"{value(found[column]):.4f}" for column in columns]

    yield "facemask, AP at IoU 0.5", cells(lambda f: f.facemask.ap50)
    yield "facemask, AP at IoU 0.5 to 0.95", cells(lambda f: f.facemask.ap)
    for setting in SETTINGS:
        yield f"WIDER FACE subset (restored), {setting}", cells(lambda f, s=setting: f.wider[s])
    yield "sample clip (4K), AP at IoU 0.5", cells(lambda f: f.sample.ap50)
    yield "sample clip (4K), AP at IoU 0.5 to 0.95", cells(lambda f: f.sample.ap)
    yield "sample clip, landmark error / sqrt(box area)", cells(lambda f: f.sample.landmarks.mean)


def recall_rows(
    found: dict[tuple[str, str], Figures], columns: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, list[str]]]:
    bins = [found[column].facemask.recall_by_height for column in columns]
    for i, truths in enumerate(bins[0].truths):
        if truths:
            low, high = bins[0].edges[i : i + 2]
            name = f"{low:g} to {high:g} px" if np.isfinite(high) else f"{low:g} px and more"
            yield f"{name} ({truths} faces)", [f"{one.recall[i]:.3f}" for one in bins]
    yield "precision of all", [f"{found[column].facemask.at_score.precision:.3f}" for column in columns]


def agreement_rows(
    found: dict[tuple[str, str], Figures], columns: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, list[str]]]:
    reference = found["public", "f32"]
    crowd = [agreement(reference.crowd, found[column].crowd, CROWD_RULES) for column in columns]
    tall = Rules(score=0.5, reference_score=0.5, min_height=LANDMARK_HEIGHT)
    large = [agreement(reference.crowd, found[column].crowd, tall) for column in columns]
    empty = [agreement(reference.empty, found[column].empty, EMPTY_RULES) for column in columns]
    lenient = replace(EMPTY_RULES, doubtful=DOUBTFUL)
    alone = [agreement(reference.empty, found[column].empty, lenient) for column in columns]
    faces = f"1080p clip, {crowd[0].faces} faces from 32 px"
    yield f"{faces}: recall", [f"{one.recall:.3f}" for one in crowd]
    yield f"{faces}: precision", [f"{one.precision:.3f}" for one in crowd]
    yield f"1080p clip, faces from {LANDMARK_HEIGHT:g} px: landmarks apart, mean", _distances(large)
    frames = empty[0].pictures
    name = f"clip of persons, {frames} frames: faces from {EMPTY_RULES.score} that it does not report from"
    for score, counted in ((EMPTY_RULES.reference_score, empty), (DOUBTFUL, alone)):
        yield f"{name} {score} on, per 200 frames", [f"{200 * one.wrong / frames:.2f}" for one in counted]


def _distances(found: Sequence[Agreement]) -> list[str]:
    return [f"{100 * one.landmarks.mean:.1f} %" for one in found]


def _plain(found: dict[tuple[str, str], Figures]) -> dict[str, Any]:
    return {
        f"{name} {precision}": {
            "facemask": one.facemask.to_dict(),
            "wider_subset": one.wider,
            "sample": one.sample.to_dict(),
        }
        for (name, precision), one in found.items()
    }


def write_between_markers(path: Path, text: str, first: str = BEGIN, last: str = END) -> None:
    """Replace what stands between two markers of a page; a page without them is left alone."""
    card = path.read_text(encoding="utf-8")
    before, begin, rest = card.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise SystemExit(f"{path} has no lines {first!r} and {last!r} to write between")
    path.write_text(f"{before}{first}\n\n{text}\n{last}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
