"""Pictures of a comparison: bars with intervals, learning curves, loss terms, and figure A.1 of the paper.

How they are drawn and written stands in `drawing.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from carp_plugin.compare import paper
from carp_plugin.compare.bootstrap import half_width
from carp_plugin.compare.statistics import labels_of, metric_name, random_level, usable
from carp_plugin.evaluation.drawing import (
    INK,
    PAPER,
    Picture,
    canvas,
    drawing,
    short,
    styles,
    write_png,
)
from carp_plugin.pages import curves


def _chance(results: Mapping[str, Any]) -> Optional[float]:
    classes = (results.get("data") or {}).get("classes")
    return 100 / classes if classes else None


def _headline_k(results: Mapping[str, Any]) -> int:
    return int(results["summary"]["bootstrap"]["headline_k"])


def bars(results: Mapping[str, Any], metrics: Sequence[str], name: str = "") -> Optional[Picture]:
    """Means over seeds as bars from zero, with the 95 % interval of the mean and every seed as a dot.

    The scale and the labels are those of all metrics, so that pictures of different metrics can be read side by side.

    Args:
        results: with its summary.
        metrics: drawn two in a row; those that no run has are left out.
        name: of the file; by default that of the first metric.

    Returns:
        Optional[Picture]: None where nothing was measured.
    """
    summary, k = results["summary"], _headline_k(results)
    metrics = [metric for metric in metrics if summary.get(metric)]
    if not metrics:
        return None
    measured = [summary[metric] for metric in summary["metrics"]]
    labels = [x for x in labels_of(results["runs"]) if any(x in rows for rows in measured)]
    ends = [
        row["mean"] + (half_width(row["values"]) or 0) for rows in measured for row in rows.values()
    ]
    with drawing():
        columns = min(2, len(metrics))
        height = 1.35 + 0.42 * len(labels)
        figure, all_axes = canvas(height, rows=-(-len(metrics) // columns), columns=columns)
        for axes in all_axes[len(metrics) :]:
            axes.remove()
        for axes, metric in zip(all_axes, metrics):
            _draw_bars(axes, results, metric, labels)
            axes.set(xlim=(0, curves.top_of(ends)), xlabel="top-1 accuracy, %")
            axes.set_title(metric_name(metric, k), fontsize=10)
        handles, _ = all_axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=2)
    said = "; ".join(
        f"{metric_name(m, k)}: "
        + ", ".join(f"{label} {row['mean']:.1f} %" for label, row in summary[m].items())
        for m in metrics
    )
    return Picture(name or metrics[0].replace("/", "-"), f"Bar chart. {said}.", figure)


def _draw_bars(axes: Axes, results: Mapping[str, Any], metric: str, labels: Sequence[str]) -> None:
    rows, style = results["summary"][metric], styles(labels_of(results["runs"]))
    for y, label in enumerate(labels):
        row = rows.get(label)
        if row is None:
            teacherless = metric.endswith("/teacher") and not _has_teacher(results, label)
            said = "no teacher" if teacherless else "not measured"
            across = axes.get_yaxis_transform()  # at the right end, clear of the levels
            axes.text(0.98, y, said, transform=across, ha="right", va="center", fontstyle="italic")
            continue
        axes.barh(y, row["mean"], height=0.62, color=style[label]["color"], alpha=0.75)
        half = half_width(row["values"])
        if half is not None:
            axes.errorbar(row["mean"], y, xerr=half, color=INK, capsize=4, linewidth=1.4)
        axes.plot(
            row["values"],
            [y] * row["n"],
            linestyle="",
            marker="o",
            markersize=4.5,
            markerfacecolor=PAPER,
            markeredgecolor=INK,
        )
    axes.set_yticks(range(len(labels)), [short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    for level, dashes, said in (
        (random_level(results["runs"], metric, _headline_k(results)), "--", "random network"),
        (_chance(results), ":", "chance"),
    ):
        if level is not None:
            axes.axvline(level, color=INK, linestyle=dashes, linewidth=1.2, label=said)


def knn_curves(results: Mapping[str, Any]) -> Optional[Picture]:
    """k-NN over epochs: the mean over seeds as a line, their range as a band; student solid, teacher dashed.

    Args:
        results: with its summary.

    Returns:
        Optional[Picture]: None where no epoch was evaluated.
    """
    labels = labels_of(results["runs"])
    style, seen = styles(labels), []
    with drawing():
        figure, (axes,) = canvas(3.7)
        for label in labels:
            of_label = _curves(results, label)
            for key, dashes in (("knn_student", "-"), ("knn_teacher", "--")):
                seen += curves.draw_band(axes, of_label, key, linestyle=dashes, **style[label])
        if not seen:
            return None
        random = random_level(results["runs"], "knn/student", _headline_k(results))
        if random is not None:
            axes.axhline(random, color=INK, linestyle="-.", linewidth=1.2)
        chance = curves.accuracy_axis(
            axes, [*seen, *([random] if random else [])], _chance(results)
        )
        drawn = [label for label in labels if _has(_curves(results, label), "knn_")]
        handles = [Line2D([], [], label=short(label), **style[label]) for label in drawn]
        handles.append(Line2D([], [], color=INK, linestyle="-", label="student"))
        if any(_has(_curves(results, label), "knn_teacher") for label in drawn):
            handles.append(Line2D([], [], color=INK, linestyle="--", label="teacher"))
        if random is not None:
            handles.append(Line2D([], [], color=INK, linestyle="-.", label="random network"))
        if chance:
            handles.append(Line2D([], [], color=INK, linestyle=":", label="chance"))
        roomy = all(len(short(label)) <= 12 for label in drawn)
        figure.legend(handles=handles, loc="outside lower center", ncols=3 if roomy else 2)
    alt = f"k-NN accuracy over epochs for {', '.join(drawn)}."
    return Picture("knn-curves", alt, figure)


def loss_terms(results: Mapping[str, Any], label: str) -> List[Picture]:
    """What a method logs of its training, one picture a term: mean over seeds, range as a band.

    Args:
        results: with runs.
        label: whose terms.

    Returns:
        List[Picture]: in the order of :func:`carp_plugin.pages.curves.terms_of`, without those of one value. Empty
        where nothing was logged.
    """
    found = _curves(results, label)
    if not found:
        return []
    style = styles(labels_of(results["runs"]))[label]
    return curves.pictures_of(found, curves.terms_of(found), label, **style)


def undrawn_terms(results: Mapping[str, Any], label: str) -> str:
    """What :func:`loss_terms` leaves out, in a sentence; empty where that is nothing."""
    found = _curves(results, label)
    return curves.undrawn(curves.of_one_value(found, curves.terms_of(found)))


def _curves(results: Mapping[str, Any], label: str) -> List[curves.Curve]:
    return [
        run["curves"]
        for run in results["runs"]
        if run["label"] == label and usable(run) and run.get("curves")
    ]


def _has_teacher(results: Mapping[str, Any], label: str) -> bool:
    return any(
        "teacher" in (run.get("accuracy") or {}) for run in results["runs"] if run["label"] == label
    )


def _has(found: Sequence[curves.Curve], prefix: str) -> bool:
    return any(key.startswith(prefix) for curve in found for entry in curve for key in entry)


def write_pictures(results: Mapping[str, Any], folder: Path) -> List[Path]:
    """Writes the pictures of a README: all bars, the k-NN curves, figure A.1 of the first CARP run, a paper's numbers.

    Args:
        results: with its summary.
        folder: made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [bars(results, results["summary"]["metrics"], "bars"), knn_curves(results)]
    drawn += [first_early_training(results), paper.picture(results)]
    return [write_png(picture, folder) for picture in drawn if picture is not None]


def first_early_training(results: Mapping[str, Any]) -> Optional[Picture]:
    """Figure A.1 of the first CARP run that was trained."""
    for run in results["runs"]:
        if run["method"] == "carp" and usable(run) and run.get("curves"):
            level = random_level([run], "knn/student", _headline_k(results))
            classes = (results.get("data") or {}).get("classes")
            return curves.early_training(run["curves"], level, classes)
    return None
