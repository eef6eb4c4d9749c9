"""The small search that gives every method a fair chance: as many trials each, judged on held-out training images."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List

from rich.table import Table

CRITERION = "k-NN top-1 of the student's backbone on the held-out images, mean over seeds"


def chosen(
    runs: List[Dict[str, Any]], trials: Dict[str, List[Dict[str, Any]]], k: int
) -> Dict[str, Any]:
    """What a search found.

    Args:
        runs: results of the runs.
        trials: method -> the settings that were tried.
        k: neighbours of the criterion.

    Returns:
        Dict[str, Any]: ``criterion``, and for every method ``trials`` (settings, accuracies over seeds, their mean;
        the mean is None where a run failed or collapsed) and ``best``, the settings of the highest mean, None where
        no trial has one. Of equal means the earlier trial is taken.
    """
    found: Dict[str, Any] = {"criterion": f"{CRITERION}, k = {k}", "methods": {}}
    for method, tried in trials.items():
        rows: List[Dict[str, Any]] = []
        for number, settings in enumerate(tried):
            label = f"{method}-{number}"
            values = [_accuracy(run, k) for run in runs if run["label"] == label]
            whole = values and None not in values
            mean = statistics.fmean(v for v in values if v is not None) if whole else None
            rows.append({"trial": number, "settings": settings, "knn": values, "mean": mean})
        known = [row for row in rows if row["mean"] is not None]
        best = max(known, key=lambda row: row["mean"], default=None)
        found["methods"][method] = {"trials": rows, "best": best and best["settings"]}
    return found


def _accuracy(run: Dict[str, Any], k: int) -> Any:
    if run["status"] != "ok":
        return None
    return run["accuracy"]["student"]["knn"]["backbone"][str(k)][0]


def table(search: Dict[str, Any]) -> Table:
    """All trials, the chosen ones marked."""
    shown = Table(title=f"search: {search['criterion']}, %")
    shown.add_column("method")
    shown.add_column("settings")
    shown.add_column("k-NN", justify="right")
    shown.add_column("")
    for method, found in search["methods"].items():
        for row in found["trials"]:
            settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
            mean = "failed" if row["mean"] is None else f"{row['mean']:.2f}"
            mark = "chosen" if row["settings"] == found["best"] and row["mean"] is not None else ""
            shown.add_row(method, settings, mean, mark)
        shown.add_section()
    return shown
