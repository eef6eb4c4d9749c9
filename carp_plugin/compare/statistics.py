"""What a comparison says in numbers: mean and spread over seeds, and the difference to a reference with its interval.

How intervals are computed, and what they do not say, stands in `bootstrap.py`.
"""

from __future__ import annotations

import zlib
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from carp_plugin.compare.bootstrap import LEVEL, paired_bootstrap
from carp_plugin.compare.floors import lines_of_floors
from carp_plugin.errors import UserError
from carp_plugin.evaluation.protocols import PROTOCOLS

Run = Mapping[str, Any]
Correct = Callable[[Run], Mapping[str, NDArray[Any]]]

#: Those that have places of their own in a run's accuracy; the others are protocols, by their headlines.
METRICS = ("knn/student", "knn/teacher", "linear/student", "linear/teacher")
_OWN = ("knn", "linear", "online_linear")
#: The network that was never pretrained, where fine-tuning has labels alone.
LABELS_ALONE = "labels alone"
_TOLERANCE = 0.02  # percentage points: accuracies may have been rounded to two decimals


def accuracy_of(run: Run, metric: str, headline_k: int = 20) -> Optional[float]:
    """Top-1 accuracy of a run in percent, or the headline of another protocol; None where it was not measured.

    Args:
        run: an entry of ``results["runs"]``.
        metric: one of :func:`metrics_of`; "knn/random" and "linear/random" ask for the network before its first step.
        headline_k: neighbours of the k-NN.
    """
    kind, features = metric.split("/")
    measured = ((run.get("accuracy") or {}).get(features) or {}).get(kind)
    if not measured:
        return None
    if kind in ("linear", "finetune"):
        return float(measured["top1"])
    if kind != "knn":
        return float(measured["scores"][measured["headline"]]["value"])
    at_k = (measured.get("backbone") or {}).get(str(headline_k))
    return None if at_k is None else float(at_k[0])


def metrics_of(runs: Sequence[Run]) -> List[str]:
    """k-NN and linear evaluation of student and teacher, then the other protocols that any run was measured by."""
    measured = (run.get("accuracy") or {} for run in runs)
    others = [
        f"{kind}/{network}"
        for accuracy in measured
        for network in ("student", "teacher")
        for kind in accuracy.get(network) or {}
        if kind not in _OWN
    ]
    return [*METRICS, *sorted(dict.fromkeys(others), key=lambda metric: metric.split("/")[0])]


def usable(run: Run) -> bool:
    """Whether a run was trained to its end; one that collapsed was, and its accuracies count."""
    return run["status"] != "failed"


def labels_of(runs: Sequence[Run]) -> List[str]:
    """Labels in the order of their first runs, without repetition."""
    return list(dict.fromkeys(run["label"] for run in runs))


def called(runs: Sequence[Run]) -> str:
    """What a row is: a method, or a variant where labels say more than the method."""
    plain = all(run["label"] == run["method"] for run in runs)
    return "method" if plain else "variant"


def summarise(
    runs: Sequence[Run],
    correct: Correct,
    reference: str = "carp",
    draws: int = 10_000,
    seed: int = 0,
    *,
    headline_k: int = 20,
) -> Dict[str, Any]:
    """Mean and spread of every method and its difference to the reference, for every metric on its own.

    Student and teacher stay apart: the better of the two would be picked on the images that are reported.

    Args:
        runs: ``results["runs"]``. Failed runs are left out and counted; collapsed ones are results and stay.
        correct: gives a run's vectors (Q,), one value a validation image whose mean is the accuracy, under the keys
            "knn/student/20", "linear/teacher" and so on; without a vector the seed does not count for the difference.
        reference: label that the others are compared with.
        draws: of the bootstrap.
        seed: of the bootstrap; each metric and label has a stream of its own, so that a method more or less leaves
            the intervals of the others as they are.
        headline_k: neighbours of the k-NN that is summarised.

    Returns:
        Dict[str, Any]: "metrics", the names of those that some run has; under each name a dictionary from label to
        "values" (percent, by seed), "seeds", "mean", "sd" (n - 1 in the denominator, None for one seed), "n" and
        "difference" (label minus reference: "mean", "low", "high" in percentage points, "level", the shared "seeds",
        and "resampled", which is "seeds and images" or, with one shared seed, "images") or None where the reference
        lacks the metric or shares no seed; "bootstrap" with the arguments; "failed", runs left out by label.

    Raises:
        UserError: a label has two runs of one seed, or a vector is of another length or does not add up to the
            accuracy of its run.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, received {draws}")
    failed = dict.fromkeys(labels_of(runs), 0)
    for run in runs:
        failed[run["label"]] += not usable(run)
    summary: Dict[str, Any] = {
        "metrics": [],
        "bootstrap": {
            "reference": reference,
            "draws": draws,
            "seed": seed,
            "headline_k": headline_k,
        },
        "failed": {label: count for label, count in failed.items() if count},
    }
    for metric in metrics_of(runs):
        measured = _by_label_and_seed(runs, metric, headline_k)
        if not measured:
            continue
        key = f"{metric}/{headline_k}" if metric.startswith("knn/") else metric
        summary["metrics"].append(metric)
        summary[metric] = {}
        for label, by_seed in measured.items():
            values = [
                float(accuracy_of(run, metric, headline_k) or 0.0) for run in by_seed.values()
            ]
            theirs = measured.get(reference, {}) if label != reference else {}
            stream = np.random.default_rng([seed, zlib.crc32(f"{metric}|{label}".encode())])
            summary[metric][label] = {
                "values": values,
                "seeds": list(by_seed),
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "n": len(values),
                "difference": _difference(by_seed, theirs, correct, key, draws, stream),
            }
    return summary


def _by_label_and_seed(
    runs: Sequence[Run], metric: str, headline_k: int
) -> Dict[str, Dict[int, Run]]:
    """The runs that have a metric, seeds in ascending order."""
    found: Dict[str, Dict[int, Run]] = {}
    for run in runs:
        if usable(run) and accuracy_of(run, metric, headline_k) is not None:
            of_label = found.setdefault(run["label"], {})
            if run["seed"] in of_label:
                raise UserError(
                    f"{run['label']} has two runs of seed {run['seed']}; give every seed once, "
                    "or runs with other settings another label."
                )
            of_label[run["seed"]] = run
    return {label: dict(sorted(by_seed.items())) for label, by_seed in found.items()}


def _difference(
    ours: Mapping[int, Run],
    theirs: Mapping[int, Run],
    correct: Correct,
    key: str,
    draws: int,
    stream: np.random.Generator,
) -> Optional[Dict[str, Any]]:
    both = {}
    for seed in ours:
        if seed in theirs:
            pair = (_vector(ours[seed], correct, key), _vector(theirs[seed], correct, key))
            if pair[0] is not None and pair[1] is not None:
                both[seed] = (pair[0], pair[1])
    if not both:
        return None
    seeds, pairs = list(both), list(both.values())
    if len({vector.shape for pair in pairs for vector in pair}) != 1:
        raise UserError(
            f"the runs of {ours[seeds[0]]['label']} and {theirs[seeds[0]]['label']} were measured on different "
            "numbers of validation images; evaluate all runs on the same images."
        )
    differences = np.stack([a.astype(np.float64) - b.astype(np.float64) for a, b in pairs])
    return {
        **paired_bootstrap(differences, draws, stream)._asdict(),
        "level": LEVEL,
        "seeds": seeds,
        "resampled": "seeds and images" if len(seeds) > 1 else "images",
    }


def _vector(run: Run, correct: Correct, key: str) -> Optional[NDArray[np.float64]]:
    """Which validation images a run got right, checked against the accuracy that it reports; None if not recorded."""
    name = f"{run['label']}, seed {run['seed']}"
    vectors = correct(run)
    if key not in vectors:
        return None
    vector = np.asarray(vectors[key])
    if vector.ndim != 1 or not len(vector):
        raise UserError(
            f"the per-image results {key} of {name} have the shape {vector.shape}, expected one value an image; "
            "evaluate this run again."
        )
    kind, features, *k = key.split("/")
    vector = vector.astype(np.float64)
    reported = accuracy_of(run, f"{kind}/{features}", int(k[0]) if k else 0)
    counted = 100 * float(vector.mean())
    if reported is None or abs(counted - reported) > _TOLERANCE:
        raise UserError(
            f"the per-image results {key} of {name} add up to {counted:.2f} %, but its accuracy is {reported} %: "
            "they are of two evaluations; evaluate this run again."
        )
    return vector


def lines_of(results: Mapping[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """The table of results as text, for the terminal, for Markdown and for the page.

    Args:
        results: what ``results.json`` holds, with its summary.

    Returns:
        Tuple[List[str], List[List[str]]]: the header, and the cells of each method and of the networks before
        training; a second line in a cell is the difference to the reference. A paper's numbers have a column.
    """
    summary, runs = results["summary"], results["runs"]
    k = summary["bootstrap"]["headline_k"]
    metrics = summary["metrics"]
    names = [metric_name(metric, k) for metric in metrics]
    theirs = (results.get("paper") or {}).get("values") or {}
    paper = [results["paper"]["source"]] if theirs else []
    header = [called(runs), "seeds", *names, *paper, "training, s", "images/s", "peak MB"]
    lines = []
    for label in labels_of(runs):
        mine = [run for run in runs if run["label"] == label and usable(run)]
        if mine:
            cells = [_cell(summary[metric].get(label)) for metric in metrics]
            seconds = _mean([(run.get("seconds") or {}).get("pretrain") for run in mine])
            speed = _mean([run.get("images_per_second") for run in mine])
            memory = _mean([run.get("peak_memory_mb") for run in mine])
            cells += [f"{theirs[label]:.2f}" if label in theirs else ""] * len(paper)
            lines.append([label, str(len(mine)), *cells, seconds, speed, memory])
    floor = [random_level(runs, metric, k) for metric in metrics]
    if any(level is not None for level in floor):
        cells = ["-" if level is None else f"{level:.2f}" for level in floor]
        lines.append(["random network", "", *cells, *[""] * len(paper), "", "", ""])
    lines += [
        [name, "", *cells, *[""] * len(paper), "", "", ""]
        for name, cells in lines_of_floors(results, metrics, k)
    ]
    alone = [
        a for a in (accuracy_of(run, f"finetune/{LABELS_ALONE}") for run in runs) if a is not None
    ]
    if alone:
        value = f"{np.mean(alone):.2f}" + (
            f" ± {np.std(alone, ddof=1):.2f}" if len(alone) > 1 else ""
        )
        cells = [value if metric == "finetune/student" else "" for metric in metrics]
        lines.append(
            [
                f"supervised ({LABELS_ALONE})",
                str(len(alone)),
                *cells,
                *[""] * len(paper),
                "",
                "",
                "",
            ]
        )
    return header, lines


def remarks_of(runs: Sequence[Run]) -> List[str]:
    """A sentence for each run that failed or collapsed, which says why."""
    return [
        f"{run['label']}, seed {run['seed']} {run['status']}: "
        f"{(run.get('why') or 'no reason was given').rstrip('.')}."
        for run in runs
        if run["status"] != "ok"
    ]


def doubts_of(runs: Sequence[Run]) -> List[str]:
    """What the runs warned of, numbers that cannot be meant: each once, with the runs that said it unless all did."""
    ended = [run for run in runs if "remarks" in run]
    said: Dict[str, List[Run]] = {}
    for run in ended:
        for remark in dict.fromkeys(run["remarks"] or ()):
            if remark.startswith("warning: "):
                said.setdefault(remark[len("warning: ") :], []).append(run)
    doubts = []
    for doubt, of in said.items():
        names = "; ".join(f"{run['label']}, seed {run['seed']}" for run in of if of != ended)
        doubts.append(f"{names}: {doubt}" if names else doubt)
    return doubts


def metric_name(metric: str, headline_k: int) -> str:
    """A metric as people read it: "k-NN (k = 20), student"."""
    kind, features = metric.split("/")
    if kind in ("linear", "finetune"):
        return f"{'linear' if kind == 'linear' else 'fine-tuned'}, {features}"
    title = PROTOCOLS[kind].title if kind in PROTOCOLS else kind
    headline = (
        f"k = {headline_k}"
        if kind == "knn"
        else PROTOCOLS[kind].headline
        if kind in PROTOCOLS
        else ""
    )
    return f"{title}{f' ({headline})' if headline else ''}, {features}"


def random_level(runs: Sequence[Run], metric: str, headline_k: int) -> Optional[float]:
    """What the networks reach before their first step: mean over runs, in percent, or None where it is unknown."""
    random = metric.split("/")[0] + "/random"
    known = [a for a in (accuracy_of(run, random, headline_k) for run in runs) if a is not None]
    return float(np.mean(known)) if known else None


def explanation(summary: Mapping[str, Any]) -> str:
    """The sentence that belongs under the table: what the spread and the interval are."""
    bootstrap = summary["bootstrap"]
    rows = [row for metric in summary["metrics"] for row in summary[metric].values()]
    shared = [len(row["difference"]["seeds"]) for row in rows if row["difference"]]
    several = any(row["n"] > 1 for row in rows)
    others = any(
        metric.split("/")[0] not in ("knn", "linear", "finetune") for metric in summary["metrics"]
    )
    what = "Top-1 accuracy, or what a protocol names," if others else "Top-1 accuracy"
    text = f"{what} on the validation images in %" + (
        ", mean ± standard deviation over seeds" if several else ", of one seed"
    )
    if shared:
        text += (
            f"; below it the difference to {bootstrap['reference']} in percentage points with its 95 % interval, "
            f"paired by seed and image ({bootstrap['draws']} bootstrap draws)"
        )
    text += "."
    if shared and min(shared) == 1:
        text += " Where only one seed is shared (*), images alone are drawn: that interval says nothing of other seeds."
    if any(1 < n < 5 for n in shared):
        text += (
            " With so few seeds an interval is too narrow where seeds differ far more than images do, and too wide "
            "where each seed gets images of its own right."
        )
    return text


def title_of(results: Mapping[str, Any]) -> str:
    """What was done on which data: a recipe keeps its name on any."""
    what = "Search" if "search" in results else "Comparison"
    data = (results.get("data") or {}).get("name")
    return f"{what} on {data}" if data else what


def table(results: Mapping[str, Any]) -> Table:
    """The results for the terminal: the table, what it says, and a row for each run that failed or collapsed.

    Args:
        results: what ``results.json`` holds, with its summary.
    """
    header, lines = lines_of(results)
    drawn = Table(title=Text(f"{title_of(results)}: {results['name']}"))
    for i, name in enumerate(header):
        drawn.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for line in lines:
        drawn.add_row(*(Text(cell) for cell in line))
    whole = Table.grid()
    whole.add_row(drawn)
    whole.add_row(Text(explanation(results["summary"]), style="dim"))
    for remark in [*doubts_of(results["runs"]), *remarks_of(results["runs"])]:
        whole.add_row(Text(remark, style="yellow"))
    return whole


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a table in GitHub's Markdown, the explanation, and the runs that failed or collapsed.

    Args:
        results: what ``results.json`` holds, with its summary.
    """
    header, lines = lines_of(results)
    rows = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in [header, *lines]]
    rule = "| --- |" + " ---: |" * (len(header) - 1)
    remarks = [
        f"- {_escaped(remark)}"
        for remark in [*doubts_of(results["runs"]), *remarks_of(results["runs"])]
    ]
    text = [rows[0], rule, *rows[1:], "", explanation(results["summary"]), ""]
    return "\n".join(text + ([*remarks, ""] if remarks else []))


def _cell(row: Optional[Mapping[str, Any]]) -> str:
    if row is None:
        return "-"
    text = f"{row['mean']:.2f}" + ("" if row["sd"] is None else f" ± {row['sd']:.2f}")
    if row["difference"]:
        d = row["difference"]
        star = "*" if d["resampled"] == "images" else ""
        text += f"\n{d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f}){star}"
    return text


def _mean(values: Sequence[Optional[float]]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.4g}" if known else "-"


def _escaped(cell: str) -> str:
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", "<br>")):
        cell = cell.replace(sign, instead)
    return cell
