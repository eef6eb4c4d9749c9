"""What a paper says of the rows of a comparison, beside what was measured here."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from matplotlib.ticker import MaxNLocator

from carp_plugin.compare.bootstrap import half_width
from carp_plugin.compare.statistics import metric_name
from carp_plugin.evaluation.drawing import INK, PALETTE, Picture, canvas, drawing, short
from carp_plugin.pages.html import Section, figure
from carp_plugin.settings.variants import Paper, Variant

#: Rows of which an order can be told.
_FEWEST = 3


def beside(paper: Paper, rows: Sequence[Variant], summary: Mapping[str, Any]) -> Dict[str, Any]:
    """A paper's numbers, and how far its order of the rows is ours.

    Args:
        paper: where the numbers stand and what they say.
        rows: of the comparison.
        summary: of its runs.

    Returns:
        Dict[str, Any]: ``source``, ``measures``, ``claim``, ``values`` (label -> number) and ``order``: for each of our
        metrics Spearman's rank correlation of its means over seeds with the paper's numbers, over the rows that have
        both; None for fewer than three, or where either side has one value only.
    """
    values = {row.label: row.paper for row in rows if row.paper is not None}
    order = {}
    for metric in summary["metrics"] if values else ():
        ours = {label: found["mean"] for label, found in summary[metric].items()}
        both = [label for label in values if label in ours]
        order[metric] = _spearman([values[x] for x in both], [ours[x] for x in both])
    return {**paper.model_dump(mode="json"), "values": values, "order": order}


def _spearman(theirs: Sequence[float], ours: Sequence[float]) -> Optional[float]:
    from scipy.stats import spearmanr

    if min(len(set(theirs)), len(set(ours))) < 2 or len(theirs) < _FEWEST:
        return None
    return float(spearmanr(theirs, ours).statistic)


def section(results: Mapping[str, Any]) -> Optional[Section]:
    """The claim and the picture, for the page; None where no paper is quoted."""
    if not results.get("paper"):
        return None
    drawn = picture(results)
    caption = (
        "A point is a row, above as the paper has it, below as measured here with the 95 % interval of the mean over "
        "seeds. The axes do not begin at 0 and are not the same."
    )
    figures = [figure(drawn, caption)] if drawn else []
    return Section("paper", "The paper", " ".join(sentences(results)), (), (), figures)


def sentences(results: Mapping[str, Any]) -> List[str]:
    """The claim, what the paper's numbers are, and how far its order is ours; empty where no paper is quoted."""
    paper = results.get("paper")
    if not paper:
        return []
    said = [f"{paper['source']}: {paper['claim'].rstrip('.')}."]
    if not paper["values"]:
        return said
    if paper["measures"]:
        said.append(f"Its numbers: {paper['measures'].rstrip('.')}.")
    k = results["summary"]["bootstrap"]["headline_k"]
    known = [
        f"{metric_name(metric, k)} {rho:+.2f}"
        for metric, rho in paper["order"].items()
        if rho is not None
    ]
    if known:
        said.append(
            f"Rank correlation of its order with ours, +1 for the same and -1 for the opposite: {', '.join(known)}; "
            "differences within our intervals count as much in it as others."
        )
    return said


def picture(results: Mapping[str, Any]) -> Optional[Picture]:
    """The paper's numbers above ours, each on an axis of its own, row by row; None without numbers or measurements.

    Args:
        results: with their summary and ``paper``.
    """
    values = (results.get("paper") or {}).get("values") or {}
    summary = results["summary"]
    metrics = [m for m in ("knn/student", "knn/teacher") if m in summary["metrics"]]
    metrics = metrics or summary["metrics"][:1]
    labels = [label for label in values if any(label in summary[m] for m in metrics)]
    if not labels:
        return None
    source, k = results["paper"]["source"], summary["bootstrap"]["headline_k"]
    with drawing():
        whole, (above, below) = canvas(2.1, rows=2)
        theirs = [values[x] for x in labels]
        above.plot(range(len(labels)), theirs, color=INK, marker="D", linestyle="")
        above.set_title(short(source), fontsize=10)
        above.set_xticks(range(len(labels)), [""] * len(labels))
        for metric, colour, marker in zip(metrics, PALETTE, ("o", "s")):
            found = {x: summary[metric][x] for x in labels if x in summary[metric]}
            below.errorbar(
                [labels.index(x) for x in found],
                [row["mean"] for row in found.values()],
                yerr=[half_width(row["values"]) or 0 for row in found.values()],
                label=metric_name(metric, k),
                linestyle="",
                color=colour,
                marker=marker,
                capsize=4,
            )
        below.set_title("here", fontsize=10)
        below.set_xticks(range(len(labels)), [short(x) for x in labels], rotation=40, ha="right")
        for axes in (above, below):
            axes.set(xlim=(-0.4, len(labels) - 0.6), ylabel="%")
            axes.yaxis.set_major_locator(MaxNLocator(5))
        whole.legend(handles=below.get_legend_handles_labels()[0], loc="outside lower center")
    said = ", ".join(f"{label} {values[label]:g}" for label in labels)
    return Picture("paper", f"{source} beside what was measured here; there {said}.", whole)
