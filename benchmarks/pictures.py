"""Pictures of the benchmarks: how time and memory of the loss grow, and what a training step is made of."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from carp_plugin.evaluation.drawing import PALETTE, Picture, canvas, drawing, styles

_FORMS = ("fused", "materialised", "bare")


def growth(results: Sequence[Mapping[str, Any]], block: int, name: str = "loss") -> Picture:
    """Time above, memory below, against K, a column for every N; log-log.

    Args:
        results: of loss.py, each with ``images``, ``prototypes``, ``block``, ``seconds`` and ``bytes`` by form.
        block: the B that is drawn.
        name: of the picture's file.
    """
    drawn = [result for result in results if result["block"] == block]
    sizes = sorted({result["images"] for result in drawn})
    with drawing():
        figure, axes = canvas(2.7, 2.6, rows=2, columns=len(sizes))
        for at, images in enumerate(sizes):
            here = [result for result in drawn if result["images"] == images]
            _curves(axes[at], here, "seconds", 1)
            _curves(axes[at + len(sizes)], here, "bytes", 1e-6)
            axes[at].set_title(f"N = {images}")
            axes[at + len(sizes)].set_xlabel("prototypes K")
        for row, label in ((0, "forward + backward, s"), (1, "extra peak memory, MB")):
            own = axes[row * len(sizes) : (row + 1) * len(sizes)]
            own[0].set_ylabel(label)
            _share_limits(own)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(_FORMS))
    alt = (
        f"Time and extra peak memory of the loss against K at B = {block}, log-log, for N = "
        + ", ".join(map(str, sizes))
    )
    return Picture(name, alt, figure)


def _curves(axes: Axes, results: Sequence[Mapping[str, Any]], what: str, scale: float) -> None:
    results = sorted(results, key=lambda result: result["prototypes"])
    for form, style in styles(_FORMS).items():
        points = [(r["prototypes"], r[what][form] * scale) for r in results if r[what].get(form)]
        if points:
            axes.plot(*zip(*points), label=form, linewidth=1.6, markersize=5, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([r["prototypes"] for r in results]))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _thousands(value: float, _: Any = None) -> str:
    return f"{value / 1024:.0f}k" if value >= 1024 else f"{value:.0f}"


def _share_limits(axes: Sequence[Axes]) -> None:
    """One scale for a row, so that its pictures can be read side by side."""
    bottom = min(one.get_ylim()[0] for one in axes)
    top = max(one.get_ylim()[1] for one in axes)
    for at, one in enumerate(axes):
        one.set_ylim(bottom, top)
        one.tick_params(labelleft=at == 0)


def shares(
    settings: Mapping[str, Mapping[str, Dict[str, float]]],
    phases: Sequence[str],
    name: str = "step",
) -> Picture:
    """What a training step is made of: a bar for every method, a panel for every setting.

    Args:
        settings: by title, the seconds of each phase by method.
        phases: from the bottom of a bar to its top.
        name: of the picture's file.
    """
    with drawing():
        figure, axes = canvas(3.4, 4.2, rows=1, columns=len(settings))
        for one, (title, methods) in zip(axes, settings.items()):
            bottom: List[float] = [0.0] * len(methods)
            for phase, colour in zip(phases, PALETTE):
                heights = [max(0.0, seconds.get(phase, 0.0)) for seconds in methods.values()]
                one.bar(
                    range(len(methods)),
                    heights,
                    bottom=bottom,
                    color=colour,
                    label=phase,
                    width=0.7,
                    edgecolor="white",
                    linewidth=0.5,
                )
                bottom = [low + height for low, height in zip(bottom, heights)]
            one.set_xticks(range(len(methods)), [method.replace("_", "\n") for method in methods])
            one.grid(axis="x", visible=False)
            one.set_ylim(0, max(bottom) * 1.05 or 1)
            one.set_title(title, fontsize=10)
            one.set_ylabel("seconds a step")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
    alt = "Seconds of a training step, stacked by " + ", ".join(phases)
    return Picture(name, alt, figure)
