"""Gathers what the runs wrote: results.json, the table and the page."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping

import numpy as np

from carp_plugin.compare.floors import floors_of
from carp_plugin.compare.paper import beside
from carp_plugin.compare.plan import Plan
from carp_plugin.compare.search import chosen
from carp_plugin.compare.statistics import markdown, summarise
from carp_plugin.data.datasets import labelled_images, subsets_of
from carp_plugin.data.folders import count_classes, data_name
from carp_plugin.data.used import roots_of
from carp_plugin.training.callbacks.history import write_json

SCHEMA = 1


def write_results(plan: Plan, runs: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Writes ``results.json`` of the runs that are finished.

    Args:
        plan: of the comparison.
        runs: their results.

    Returns:
        Dict[str, Any]: what was written.
    """
    settings, data = plan.settings, plan.first.data
    train, val = labelled_images(data, _untouched, _untouched)
    roots = roots_of(data)
    trained = [run for run in runs if run.get("provenance")]
    first = trained[0]["provenance"] if trained else {}
    headline = plan.first.evaluation.k
    knn = settings.knn and settings.knn.model_dump(mode="json")
    results: Dict[str, Any] = {
        "schema": SCHEMA,
        "name": settings.name,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        **{key: first.get(key) for key in ("commit", "host", "versions", "machine")},
        "planned": len(plan.jobs),
        "data": {
            "name": data_name(data.dataset, roots[0]),
            "dataset": data.dataset,
            "train_path": roots[0],
            "val_path": roots[1],
            "train_images": len(train),
            "val_images": len(val),
            "subsets": subsets_of(train, val),
            "classes": count_classes(data.dataset, data.train_path),
        },
        "protocol": {
            "knn": knn and {**knn, "headline_k": headline},
            "linear": settings.linear and _linear_protocol(settings.linear),
        },
        "floors": floors_of(plan),
        "config": plan.values,
        "runs": runs,
    }
    if settings.trials:
        trials = {
            method: [dict(trial) for trial in settings.trials[method]]
            for method in settings.methods
        }
        results["search"] = chosen(runs, trials, headline)
    else:
        reference = settings.reference or next(
            (row.label for row in plan.rows if row.label == "carp"), plan.rows[0].label
        )
        results["summary"] = summarise(
            runs, lambda run: correct_of(plan.root, run), reference, headline_k=headline
        )
        if settings.paper:
            results["paper"] = beside(settings.paper, plan.rows, results["summary"])
        (plan.root / "table.md").write_text(markdown(results))
    write_json(plan.root / "results.json", results)
    return results


def _untouched(image: Any) -> Any:
    return image


def _linear_protocol(linear: Mapping[str, Any]) -> Dict[str, Any]:
    """What defines a linear evaluation; paths and devices are those of the runs."""
    protocol = {key: linear[key] for key in ("optimizer", "scheduler", "max_epochs")}
    return {**protocol, "train_transform": linear["data"].get("train_transform")}


def correct_of(root: Path, run: Mapping[str, Any]) -> Dict[str, np.ndarray]:
    """Whether each validation image was classified correctly: (Q,) bool for every measurement of a run."""
    if not run.get("correct"):
        return {}
    with np.load(root / run["correct"]) as arrays:
        return dict(arrays)
