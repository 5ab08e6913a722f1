"""Curves of an evaluation: as JSON to compare and plot elsewhere, and as PNG to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinastream.errors import MissingPackageError
from retinastream.evaluation.average_precision import AveragePrecision, RecallByHeight
from retinastream.evaluation.measures import Measures, finite
from retinastream.evaluation.wider_face import WiderFaceResult
from retinastream.pipeline.sinks.part_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.floating[Any]]
# More points than a plot has pixels only make the file larger.
MAX_POINTS = 2000
_DOTS_PER_INCH = 120


def measure_curves(measures: Measures) -> dict[str, Any]:
    """Return the curves of a labelled set as JSON can hold them.

    ``precision_recall`` has score, precision and recall at IoU 0.5, thinned evenly to at most 2,000 points of which the
    last is kept; ``recall_by_height`` the recall per bin of heights, at the chosen score and at any.
    """
    return {
        "precision_recall": _thin(measures.curve),
        "recall_by_height": _heights(measures.recall_by_height),
        "recall_by_height_any_score": _heights(measures.recall_by_height_any_score),
    }


def wider_curves(result: WiderFaceResult) -> dict[str, Any]:
    """Return precision and recall at the 1,000 thresholds of each setting of WIDER FACE as JSON can hold them."""
    return {
        setting: finite(
            {
                "ap": curve.ap,
                "threshold": curve.thresholds.tolist(),
                "precision": curve.precision.tolist(),
                "recall": curve.recall.tolist(),
            }
        )
        for setting, curve in result.curves.items()
    }


def check_matplotlib() -> None:
    """Raise MissingPackageError where matplotlib, which draws the PNG files, is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "curves are drawn with matplotlib, which is not installed: pip install 'retinastream[eval]'"
        ) from error


def write_measure_curves(folder: Path, measures: Measures, *, title: str = "", overwrite: bool = False) -> list[Path]:
    """Draw ``precision_recall.png`` and ``recall.png`` (by face height, and by score) into ``folder``; return them.

    Raises MissingPackageError without matplotlib, UsageError and OutputError as every output does.
    """
    curve = measures.curve
    figures = {
        "precision_recall.png": _precision_recall(
            {f"AP50 {measures.ap50:.4f}": (curve.recall, curve.precision)}, f"{title}: {curve.truths} faces"
        ),
        "recall.png": _recalls(measures, title),
    }
    return _write(folder, figures, overwrite=overwrite)


def write_wider_curves(
    folder: Path, result: WiderFaceResult, *, title: str = "", overwrite: bool = False
) -> list[Path]:
    """Draw ``precision_recall.png`` with the three settings of WIDER FACE. Raises as ``write_measure_curves``."""
    lines = {f"{s} {c.ap:.4f}": (c.recall, c.precision) for s, c in result.curves.items()}
    return _write(folder, {"precision_recall.png": _precision_recall(lines, title)}, overwrite=overwrite)


def _thin(curve: AveragePrecision) -> dict[str, list[float]]:
    count = len(curve.scores)
    kept = np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).round().astype(np.int64))
    columns = {"score": curve.scores, "precision": curve.precision, "recall": curve.recall}
    return {name: finite(values[kept].tolist()) for name, values in columns.items()}


def _heights(recall: RecallByHeight) -> dict[str, Any]:
    plain = {"edges": recall.edges.tolist(), "faces": recall.truths.tolist(), "recall": recall.recall.tolist()}
    return {name: finite(values) for name, values in plain.items()}


def _figure(plots: int) -> tuple[Figure, Sequence[Axes]]:
    check_matplotlib()
    # Not pyplot: it keeps figures, and asks for a display. A bare figure is drawn by Agg.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * plots, 4.8), layout="constrained")
    return figure, [figure.add_subplot(1, plots, number) for number in range(1, plots + 1)]


def _precision_recall(lines: Mapping[str, tuple[Values, Values]], title: str) -> Figure:
    figure, (axes,) = _figure(1)
    for label, (recall, precision) in lines.items():
        axes.plot(recall, precision, label=label)
    _dress(axes, title, "recall", "precision")
    axes.set_xlim(0, 1)
    axes.legend(loc="lower left")
    return figure


def _recalls(measures: Measures, title: str) -> Figure:
    figure, (by_height, by_score) = _figure(2)
    bins = measures.recall_by_height
    places = np.arange(len(bins.truths))
    shown = {"any score": measures.recall_by_height_any_score, f"score {measures.at_score.threshold:g}": bins}
    for number, (label, recall) in enumerate(shown.items()):
        by_height.bar(places + 0.4 * number - 0.2, np.nan_to_num(recall.recall), 0.4, label=label)
    ends = [f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g}+" for low, high in _pairs(bins.edges)]
    faces = [f"{end}\n({count})" for end, count in zip(ends, bins.truths.tolist(), strict=True)]
    by_height.set_xticks(places, faces)
    _dress(by_height, title, "face height in pixels (faces)", "recall")
    by_height.legend(loc="upper left")
    curve = measures.curve
    by_score.plot(curve.scores, curve.recall, label="recall")
    by_score.plot(curve.scores, curve.precision, label="precision")
    _dress(by_score, title, "score threshold", "recall, precision")
    by_score.legend(loc="lower left")
    return figure


def _pairs(edges: Values) -> list[tuple[float, float]]:
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _dress(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_ylim(0, 1.02)
    axes.grid(visible=True, alpha=0.3)


def _write(folder: Path, figures: Mapping[str, Figure], *, overwrite: bool) -> list[Path]:
    written = []
    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DOTS_PER_INCH)
        write_whole(folder / name, content.getvalue(), overwrite=overwrite)
        written.append(folder / name)
    return written
