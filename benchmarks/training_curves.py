"""A picture of a training run: loss, rate and average precision by step, from the tables in its folder.

python benchmarks/training_curves.py runs/mnet025-distilled --output docs/models/mnet025-training.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

PARTS = ("classification", "box", "landmark", "teacher_total")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(read_table(options.run / "log.csv"), read_table(options.run / "evaluation.csv"), options.output)


def read_table(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def draw(log: dict[str, list[float]], evaluation: dict[str, list[float]], output: Path) -> None:
    figure, (losses, rate, precision) = plt.subplots(3, 1, sharex=True, figsize=(8, 8), height_ratios=(3, 1, 2))
    for name in PARTS:
        losses.plot(log["step"], log[name], label=name.replace("_", " "), linewidth=0.8)
    losses.set(yscale="log", ylabel="loss (parts, unweighted)")
    losses.legend()
    rate.plot(log["step"], log["rate"], color="black")
    rate.set(yscale="log", ylabel="learning rate")
    for name, title in (("ap50", "AP at IoU 0.5"), ("ap", "AP at IoU 0.5 to 0.95")):
        precision.plot(evaluation["step"], evaluation[name], marker="o", markersize=3, label=title)
    precision.set(xlabel="step", ylabel="held-out pictures")
    precision.legend()
    for axes in (losses, rate, precision):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    # Without the date and version that matplotlib adds, the same run gives the same file.
    figure.savefig(output, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
