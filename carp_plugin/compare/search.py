"""The small search that gives every method a fair chance: as many trials each, judged on held-out training images."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, Mapping, Optional, Tuple

from rich.table import Table

from carp_plugin.pages.html import Section

HEADER = ("method", "settings", "k-NN", "")
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
    for column, justify in zip(HEADER, ("left", "left", "right", "left")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    for rows in _rows(search):
        for method, settings, knn, mark in rows:
            shown.add_row(method, ", ".join(settings), knn, mark)
        shown.add_section()
    return shown


def section(results: Mapping[str, Any]) -> Optional[Section]:
    """All trials, for the page; None where nothing was searched."""
    search = results.get("search")
    if search is None:
        return None
    lines = [
        [[method], settings or ["those of the recipe"], [knn], [mark]]
        for rows in _rows(search)
        for method, settings, knn, mark in rows
    ]
    note = f"In %: {search['criterion']}. The chosen settings are those of the highest mean."
    return Section("search", "Search", note, HEADER, lines)


def _rows(search: Mapping[str, Any]) -> List[List[Tuple[str, List[str], str, str]]]:
    """Method by method the cells of every trial; the settings are a list."""
    found = []
    for method, of_method in search["methods"].items():
        rows = []
        for row in of_method["trials"]:
            settings = [f"{key}={value}" for key, value in row["settings"].items()]
            chosen = row["settings"] == of_method["best"] and row["mean"] is not None
            rows.append((method, settings, _mean(row), "chosen" if chosen else ""))
        found.append(rows)
    return found


def _mean(row: Mapping[str, Any]) -> str:
    if row["mean"] is not None:
        return f"{row['mean']:.2f}"
    return "failed" if row["knn"] else "to come"
