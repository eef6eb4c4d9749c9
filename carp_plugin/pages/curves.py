"""Curves over epochs: what a method logs of its training, k-NN, and figure A.1 of the paper.

A curve is a list of epochs as ``metrics.json`` has them. How pictures are drawn and written stands in
``evaluation/drawing.py``.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from carp_plugin.evaluation.drawing import INK, PALETTE, Picture, canvas, drawing, short

#: The terms of CARP in the order they are drawn, with the axis each is read on.
CARP_TERMS = {
    "train_consistency": "consistency, nats",
    "train_entropy_gap": "entropy gap, nats",
    "train_information": "information, nats",
    "train_prototypes_used": "prototypes used, share",
}

_NOT_TERMS = ("acc", "class", "seconds")  # the online classifier's, and what is no term of a loss

Curve = Sequence[Mapping[str, Any]]


def values_of(curves: Sequence[Curve], key: str) -> Dict[int, List[float]]:
    """Epochs, counted from 1 -> the finite values of a quantity; an epoch that no curve has is left out."""
    by_epoch: Dict[int, List[float]] = {}
    for curve in curves:
        for entry in curve:
            value = entry.get(key)
            if isinstance(value, (int, float)) and np.isfinite(value):
                by_epoch.setdefault(int(entry["epoch"]) + 1, []).append(float(value))
    return dict(sorted(by_epoch.items()))


def draw_band(axes: Axes, curves: Sequence[Curve], key: str, **style: Any) -> List[float]:
    """Draws the mean of several curves, their range as a band, and returns the values drawn.

    Args:
        axes: drawn on.
        curves: one a seed.
        key: of the quantity; an epoch that no curve has is skipped.
        style: of the line, as matplotlib takes it; has a ``color``.
    """
    by_epoch = values_of(curves, key)
    if not by_epoch:
        return []
    epochs = list(by_epoch)
    means = [float(np.mean(values)) for values in by_epoch.values()]
    axes.plot(
        epochs, means, linewidth=1.6, markersize=4.5, markevery=max(1, len(epochs) // 10), **style
    )
    low, high = ([f(values) for values in by_epoch.values()] for f in (min, max))
    if low != high:
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    return [value for values in by_epoch.values() for value in values]


def top_of(values: Sequence[float]) -> float:
    """End of an accuracy axis that begins at 0: the next ten per cent above all values."""
    return float(min(100, 10 * (int(max(values, default=0) * 1.05) // 10 + 1)))


def accuracy_axis(axes: Axes, values: Sequence[float], chance: Optional[float]) -> bool:
    """An axis for lines, from the ten per cent below all values: bars begin at 0, differences of lines are to be read.

    Returns:
        bool: whether chance lies on it, and was drawn.
    """
    bottom = 10 * (max(0.0, min(values) - 1) // 10)
    axes.set(ylim=(bottom, top_of(values)), xlabel="epochs", ylabel="k-NN top-1 accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = chance is not None and chance >= bottom
    if chance is not None and drawn:
        axes.axhline(chance, color=INK, linestyle=":", linewidth=1.2, label="chance")
    return drawn


def early_training(
    curves: Curve, random: Optional[float] = None, classes: Optional[int] = None
) -> Optional[Picture]:
    """Figure A.1 of the paper: student and teacher of one run, and where the random network stood.

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
            values += draw_band(axes, [curves], key, label=key[len("knn_") :], **style)
        if not values:
            return None
        if random is not None:
            axes.axhline(random, color=INK, linestyle="-.", linewidth=1.2, label="random network")
        levels = [] if random is None else [random]
        accuracy_axis(axes, [*values, *levels], 100 / classes if classes else None)
        handles, _ = axes.get_legend_handles_labels()
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    last = {key: series[key] for series in curves for key in series if key.startswith("knn_")}
    said = ", ".join(f"{key[len('knn_') :]} {value:.1f} %" for key, value in last.items())
    return Picture(
        "early-training",
        f"k-NN accuracy of student and teacher over epochs, with the random network; at the end {said}.",
        figure,
    )


def terms_of(curves: Sequence[Curve]) -> Dict[str, str]:
    """What a method logs of its training: key -> how it is called.

    Those of CARP come first and in the order of its objective, then the others by name; the online classifier's are
    left out.
    """
    keys = {
        key
        for curve in curves
        for entry in curve
        for key in entry
        if key.startswith("train_") and not any(word in key for word in _NOT_TERMS)
    }
    order = [key for key in CARP_TERMS if key in keys] + sorted(keys - set(CARP_TERMS))
    return {key: CARP_TERMS.get(key, key[len("train_") :].replace("_", " ")) for key in order}


def of_one_value(curves: Sequence[Curve], named: Mapping[str, str]) -> Dict[str, float]:
    """Quantities of which a picture would show a point or a level line: how each is called -> its only value.

    Args:
        curves: one a seed.
        named: key -> how it is called.
    """
    found = {}
    for key, name in named.items():
        values = {value for values in values_of(curves, key).values() for value in values}
        if len(values) == 1:
            found[name] = values.pop()
    return found


def undrawn(values: Mapping[str, float]) -> str:
    """The sentence for what :func:`of_one_value` found; empty where that is nothing."""
    if not values:
        return ""
    said = "; ".join(f"{name}: {value:.4g}" for name, value in values.items())
    return f"Not drawn, for there is one value only: {said}."


def pictures_of(
    curves: Sequence[Curve], named: Mapping[str, str], whose: str, **style: Any
) -> List[Picture]:
    """One small picture a quantity; without those of one value.

    Args:
        curves: one a seed.
        named: key -> how it is called.
        whose: said to those who do not see the pictures.
        style: of the line, as matplotlib takes it.
    """
    level = of_one_value(curves, named)
    seeds = f", mean over {len(curves)} seeds" if len(curves) > 1 else ""
    pictures = []
    for key, name in named.items():
        if name in level:
            continue
        with drawing():
            figure, (axes,) = canvas(2.3, width=3.4)
            if draw_band(axes, curves, key, **style):
                axes.set(ylabel=short(name), xlabel="epochs")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                said = f"{whose}: {name} over epochs{seeds}."
                pictures.append(Picture(f"terms-{key.removeprefix('train_')}", said, figure))
    return pictures
