"""The WIDER FACE protocol over 3,226 pictures with 100 to 300 predictions each: seconds, and the result.

python benchmarks/wider_eval.py [--truth FOLDER] [--text]
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np

from retinastream.evaluation.wider_face import evaluate
from retinastream.evaluation.wider_text import read_predictions, write_predictions
from retinastream.evaluation.wider_truth import SETTINGS, EventTruth, GroundTruth, PictureTruth
from retinastream.evaluation.wider_truth import read_ground_truth as read


def synthetic_truth(rng: np.random.Generator) -> GroundTruth:
    """As many events, pictures and (about) faces as the validation set has."""
    numbers = np.array_split(np.arange(3226), 61)
    return GroundTruth(
        tuple(
            EventTruth(f"event-{e}", tuple(synthetic_picture(f"picture-{n}", rng) for n in members))
            for e, members in enumerate(numbers)
        )
    )


def synthetic_picture(name: str, rng: np.random.Generator) -> PictureTruth:
    count = min(709, 1 + int(rng.pareto(1.0) * 4))
    heights = np.round(np.exp(rng.uniform(np.log(5), np.log(300), count)))
    boxes = np.stack([rng.integers(0, 1024, count), rng.integers(0, 768, count), heights * 0.8, heights], axis=1)
    limits = {"easy": 50, "medium": 30, "hard": 10}
    return PictureTruth(name, boxes, {s: np.flatnonzero(heights >= limits[s]) for s in SETTINGS})


def random_predictions(truth: GroundTruth, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Boxes around the faces, off by a tenth of their size, and others anywhere with lower scores."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for event in truth.events:
        for picture in event.pictures:
            total = int(rng.integers(100, 301))
            near = picture.boxes[rng.integers(0, len(picture.boxes), total // 2)]
            near = near + rng.normal(0, 0.1, near.shape) * np.tile(near[:, 2:], 2)
            far = rng.uniform(0, [1024, 768, 200, 200], (total - len(near), 4))
            scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 4, len(far))])
            found.setdefault(event.name, {})[picture.name] = np.column_stack([np.vstack([near, far]), scores])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--truth", help="folder of the official .mat files; without it a truth of the same size is made up"
    )
    parser.add_argument("--text", action="store_true", help="also write the predictions as text and time reading them")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    truth = read(arguments.truth) if arguments.truth else synthetic_truth(rng)
    print(f"truth of {truth.pictures} pictures in {len(truth.events)} events: {time.perf_counter() - began:.2f} s")
    predictions = random_predictions(truth, rng)
    boxes = sum(len(rows) for pictures in predictions.values() for rows in pictures.values())
    began = time.perf_counter()
    result = evaluate(predictions, truth)
    print(f"evaluating {boxes} predictions: {time.perf_counter() - began:.2f} s")
    print(", ".join(f"{s} {result.ap[s]:.4f} of {truth.faces(s)} faces" for s in SETTINGS))
    if arguments.text:
        with tempfile.TemporaryDirectory() as folder:
            write_predictions(folder, predictions)
            began = time.perf_counter()
            again = read_predictions(folder)
            print(f"reading them from text: {time.perf_counter() - began:.2f} s")
        assert evaluate(again, truth).ap == result.ap


if __name__ == "__main__":
    main()
