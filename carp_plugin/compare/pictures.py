"""Pictures of a comparison: bars with intervals, learning curves, loss terms, and figure A.1 of the paper.

How they are drawn and written stands in `drawing.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from carp_plugin.compare import paper
from carp_plugin.compare.bootstrap import half_width
from carp_plugin.compare.statistics import labels_of, metric_name, random_level, usable
from carp_plugin.evaluation.drawing import (
    INK,
    PALETTE,
    PAPER,
    Picture,
    canvas,
    drawing,
    short,
    styles,
    write_png,
)

#: The terms of CARP in the order they are drawn, with the axis each is read on.
CARP_TERMS = {
    "train_consistency": "consistency, nats",
    "train_entropy_gap": "entropy gap, nats",
    "train_information": "information, nats",
    "train_prototypes_used": "prototypes used, share",
}

_NOT_TERMS = ("acc", "class", "seconds")  # the online classifier's, and what is no term of a loss

Curve = Sequence[Mapping[str, Any]]


def _top(values: Sequence[float]) -> float:
    """End of an accuracy axis that begins at 0: the next ten per cent above all values."""
    return float(min(100, 10 * (int(max(values, default=0) * 1.05) // 10 + 1)))


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
            axes.set(xlim=(0, _top(ends)), xlabel="top-1 accuracy, %")
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
            curves = _curves(results, label)
            for key, dashes in (("knn_student", "-"), ("knn_teacher", "--")):
                seen += _draw_band(axes, curves, key, linestyle=dashes, **style[label])
        if not seen:
            return None
        random = random_level(results["runs"], "knn/student", _headline_k(results))
        if random is not None:
            axes.axhline(random, color=INK, linestyle="-.", linewidth=1.2)
        chance = _accuracy_axis(axes, [*seen, *([random] if random else [])], _chance(results))
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


def early_training(
    curves: Curve, random: Optional[float] = None, classes: Optional[int] = None
) -> Optional[Picture]:
    """Figure A.1 of the paper: student and teacher of one CARP run, and where the random network stood.

    Args:
        curves: of one run; an entry of epoch -1 is the network before its first step.
        random: k-NN accuracy of that network in percent, where the curves do not hold it.
        classes: draws the level of chance.

    Returns:
        Optional[Picture]: None where no epoch was evaluated.
    """
    values: List[float] = []
    before = [e["knn_student"] for e in curves if e["epoch"] < 0 and "knn_student" in e]
    random = before[0] if before else random
    with drawing():
        figure, (axes,) = canvas(3.4)
        for key, dashes, colour, marker in (
            ("knn_student", "-", PALETTE[0], "o"),
            ("knn_teacher", "--", PALETTE[1], "s"),
        ):
            style = {"linestyle": dashes, "color": colour, "marker": marker}
            values += _draw_band(axes, [curves], key, label=key[len("knn_") :], **style)
        if not values:
            return None
        if random is not None:
            axes.axhline(random, color=INK, linestyle="-.", linewidth=1.2, label="random network")
        levels = [] if random is None else [random]
        _accuracy_axis(axes, [*values, *levels], 100 / classes if classes else None)
        handles, _ = axes.get_legend_handles_labels()
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    last = {key: series[key] for series in curves for key in series if key.startswith("knn_")}
    said = ", ".join(f"{key[len('knn_') :]} {value:.1f} %" for key, value in last.items())
    return Picture(
        "early-training",
        f"k-NN accuracy of student and teacher over epochs, with the random network; at the end {said}.",
        figure,
    )


def loss_terms(results: Mapping[str, Any], label: str) -> List[Picture]:
    """What a method logs of its training, one picture a term: mean over seeds, range as a band.

    Args:
        results: with runs.
        label: whose terms.

    Returns:
        List[Picture]: those of CARP first and in the order of its objective, then the others by name; the online
        classifier's are left out. Empty where nothing was logged.
    """
    curves = _curves(results, label)
    keys = {
        key
        for curve in curves
        for entry in curve
        for key in entry
        if key.startswith("train_") and not any(word in key for word in _NOT_TERMS)
    }
    if not keys:
        return []
    order = [key for key in CARP_TERMS if key in keys] + sorted(keys - set(CARP_TERMS))
    style = styles(labels_of(results["runs"]))[label]
    pictures = []
    for key in order:
        name = CARP_TERMS.get(key, key[len("train_") :].replace("_", " "))
        with drawing():
            figure, (axes,) = canvas(2.3, width=3.4)
            if _draw_band(axes, curves, key, **style):
                axes.set(ylabel=short(name), xlabel="epochs")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                said = f"{label}: {name} over epochs, mean over {len(curves)} seeds."
                pictures.append(Picture(f"terms-{key[len('train_') :]}", said, figure))
    return pictures


def _curves(results: Mapping[str, Any], label: str) -> List[Curve]:
    return [
        run["curves"]
        for run in results["runs"]
        if run["label"] == label and usable(run) and run.get("curves")
    ]


def _has_teacher(results: Mapping[str, Any], label: str) -> bool:
    return any(
        "teacher" in (run.get("accuracy") or {}) for run in results["runs"] if run["label"] == label
    )


def _has(curves: Sequence[Curve], prefix: str) -> bool:
    return any(key.startswith(prefix) for curve in curves for entry in curve for key in entry)


def _draw_band(axes: Axes, curves: Sequence[Curve], key: str, **style: Any) -> List[float]:
    """Draws one quantity of several seeds and returns the values drawn; an epoch that no seed has is skipped."""
    by_epoch: Dict[int, List[float]] = {}
    for curve in curves:
        for entry in curve:
            value = entry.get(key)
            if isinstance(value, (int, float)) and np.isfinite(value):
                by_epoch.setdefault(int(entry["epoch"]) + 1, []).append(float(value))
    if not by_epoch:
        return []
    epochs = sorted(by_epoch)
    means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
    axes.plot(
        epochs, means, linewidth=1.6, markersize=4.5, markevery=max(1, len(epochs) // 10), **style
    )
    low, high = ([f(by_epoch[epoch]) for epoch in epochs] for f in (min, max))
    if low != high:
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    return [value for values in by_epoch.values() for value in values]


def _accuracy_axis(axes: Axes, values: Sequence[float], chance: Optional[float]) -> bool:
    """An axis for lines, from the ten per cent below all values: bars begin at 0, differences of lines are to be read.

    Returns:
        bool: whether chance lies on it, and was drawn.
    """
    bottom = 10 * (max(0.0, min(values) - 1) // 10)
    axes.set(ylim=(bottom, _top(values)), xlabel="epochs", ylabel="k-NN top-1 accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = chance is not None and chance >= bottom
    if chance is not None and drawn:
        axes.axhline(chance, color=INK, linestyle=":", linewidth=1.2, label="chance")
    return drawn


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
            return early_training(run["curves"], level, (results.get("data") or {}).get("classes"))
    return None
