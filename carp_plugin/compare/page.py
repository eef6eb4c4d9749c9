"""The page of a comparison: one HTML file that needs nothing else, for a window, a telephone and paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from carp_plugin.compare import gallery, paper, pictures, search
from carp_plugin.compare.statistics import (
    called,
    doubts_of,
    explanation,
    labels_of,
    lines_of,
    remarks_of,
    title_of,
    usable,
)
from carp_plugin.errors import UserError
from carp_plugin.pages.html import (
    Figure,
    Section,
    figure,
    host_line,
    known,
    listed,
    pairs,
    rendered,
    write_whole,
    yaml_of,
)

_TEMPLATE = "page.html.j2"


class Gallery(NamedTuple):
    """The gallery of a label.

    Attributes:
        title: whose it is.
        rows: prototypes and their images.
        trouble: why there are no rows, or empty.
    """

    title: str
    rows: List[gallery.Row]
    trouble: str


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes the page of a comparison or of a search, of as many runs as are finished.

    Args:
        results: what ``results.json`` holds; whatever is missing in it is left out of the page or said to be missing.
        folder: the comparison's, that files in ``results`` are named from; made where it is missing.

    Returns:
        Path: ``folder/index.html``, whole or not written at all.

    Raises:
        UserError: the results are of nothing, or the folder cannot be written to.
    """
    if "runs" not in results or not {"summary", "search"} & set(results):
        raise UserError(
            "a page is made of results with runs and their summary, or their search; give what results.json of a "
            "comparison holds."
        )
    return write_whole(html_of(results, Path(folder)), Path(folder) / "index.html")


def html_of(results: Mapping[str, Any], folder: Path) -> str:
    """The page as text; the same results and gallery files give the same text."""
    summary = results.get("summary")
    return rendered(
        _TEMPLATE,
        "carp_plugin.compare",
        name=str(results.get("name") or "comparison"),
        title=title_of(results),
        claim=_claim(results),
        facts=_facts(results),
        **_summary(results, folder),
        summarised=summary is not None,
        sections=_sections(results),
        doubts=doubts_of(results["runs"]),
        remarks=remarks_of(results["runs"]),
        runs=[_provenance(run) for run in results["runs"]],
        command=results.get("command") or "",
        config=yaml_of(results.get("config")),
        commit=results.get("commit"),
        packages=pairs(results.get("versions")),
    )


def _sections(results: Mapping[str, Any]) -> List[Section]:
    """What modules of their own have to say, in the order of the page: one call each, None where it is nothing."""
    found = [search.section(results), paper.section(results)]
    return [section for section in found if section is not None]


def _summary(results: Mapping[str, Any], folder: Path) -> Dict[str, Any]:
    """What the page shows of results that have a summary; nothing of a search, whose runs are trials."""
    if "summary" not in results:
        empty: Dict[str, Any] = dict.fromkeys(("header", "lines", "bars", "curves", "terms"), ())
        return {**empty, "galleries": (), "explanation": ""}
    summary = results["summary"]
    header, lines = lines_of(results)
    charts = [pictures.bars(results, [metric]) for metric in summary["metrics"]]
    return {
        "header": header,
        "lines": [[cell.split("\n") for cell in line] for line in lines],
        "explanation": explanation(summary),
        "bars": [figure(chart) for chart in charts if chart],
        "curves": _curves(results),
        "terms": _terms(results),
        "galleries": _galleries(results, folder),
    }


def _claim(results: Mapping[str, Any]) -> str:
    """What was compared, in one sentence."""
    runs = results["runs"]
    done = sum(usable(run) for run in runs)
    labels = labels_of(runs)
    seeds = len({run["seed"] for run in runs})
    rows = f"{len(labels)} {called(runs)}{'s' * (len(labels) != 1)} ({', '.join(labels)})"
    planned = results.get("planned") or len(runs)
    left = planned - len(runs)
    more = f" {left} more {'are' if left > 1 else 'is'} to come." if left else ""
    of = f"{done} of {planned} runs were trained to their end."
    return f"{rows}, {seeds} seed{'s' * (seeds != 1)}: {of}{more}"


def _facts(results: Mapping[str, Any]) -> List[Tuple[str, str]]:
    """What was compared, with what, where and when: names and values, empty values left out."""
    data, protocol = results.get("data") or {}, results.get("protocol") or {}
    knn, linear = protocol.get("knn") or {}, protocol.get("linear") or {}
    k = results["summary"]["bootstrap"]["headline_k"] if "summary" in results else None
    facts = [
        ("name", results.get("name")),
        ("training images", _said(data, "train_images", "train_path")),
        ("validation images", _said(data, "val_images", "val_path")),
        ("classes", data.get("classes")),
        ("budget", _budget(results)),
        (
            "k-NN",
            k and knn and f"k = {k}, temperature {knn.get('temperature', 'not recorded')}, cosine",
        ),
        ("linear layer", linear and listed(_flat(linear))),
        ("host", host_line(results.get("host"))),
        ("machine", listed(results.get("machine"))),
        ("commit", results.get("commit")),
        ("date", results.get("date")),
    ]
    return known(facts)


def _said(data: Mapping[str, Any], count: str, path: str) -> str:
    number, where = data.get(count), data.get(path)
    return f"{number} in {where}" if number is not None and where else str(number or where or "")


def _budget(results: Mapping[str, Any]) -> str:
    """Steps, epochs and batch of the runs; a range where they differ, which is worth knowing."""
    runs = [run for run in results["runs"] if usable(run)]
    parts = []
    for name, values in (
        ("backbone", [_at(run, "config.backbone.name") for run in runs]),
        ("epochs", [_at(run, "config.max_epochs") for run in runs]),
        ("steps", [run.get("steps") for run in runs]),
        ("images a batch", [_at(run, "config.optimizer.batch_size") for run in runs]),
    ):
        known = sorted({str(value) for value in values if value is not None})
        if known:
            said = " or ".join(known)
            parts.append(f"{name} {said}" if name == "backbone" else f"{said} {name}")
    return ", ".join(parts)


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Nested settings with dotted keys."""
    flat: Dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _curves(results: Mapping[str, Any]) -> List[Figure]:
    found = []
    knn = pictures.knn_curves(results)
    if knn:
        found.append(
            figure(
                knn,
                "k-NN accuracy over epochs. A line is the mean over seeds, its band their range; solid is the "
                "student, dashed the teacher, dash-dotted the random network. Higher is better; the axis does "
                "not begin at 0.",
            )
        )
    early = pictures.first_early_training(results)
    if early:
        found.append(
            figure(
                early,
                "Student and teacher of the first CARP run, as in figure A.1 of the paper; the random network is "
                "the level that training has to leave behind. The axis does not begin at 0.",
            )
        )
    return found


def _terms(results: Mapping[str, Any]) -> List[Tuple[str, List[Figure], str]]:
    """Pictures of what each method logs, and what is not drawn; names are made unique, for ids in a page must be."""
    terms = []
    for i, label in enumerate(labels_of(results["runs"])):
        drawn = [
            figure(picture._replace(name=f"m{i}-{picture.name}"))
            for picture in pictures.loss_terms(results, label)
        ]
        undrawn = pictures.undrawn_terms(results, label)
        if drawn or undrawn:
            terms.append((label, drawn, undrawn))
    return terms


def _galleries(results: Mapping[str, Any], folder: Path) -> List[Gallery]:
    """The gallery of the first run of each label that has one."""
    found: Dict[str, Gallery] = {}
    for run in results["runs"]:
        if run["label"] in found or not usable(run) or not run.get("gallery"):
            continue
        title = f"{run['label']}, seed {run['seed']}"
        try:
            found[run["label"]] = Gallery(title, gallery.read(folder / run["gallery"]), "")
        except UserError as error:
            found[run["label"]] = Gallery(title, [], str(error))
    return list(found.values())


def _provenance(run: Mapping[str, Any]) -> Dict[str, str]:
    """What is known of one run: its title, its measurements and its settings."""
    measured = {
        key: run[key]
        for key in run
        if key not in ("config", "curves", "label", "seed", "status") and run[key] is not None
    }
    return {
        "title": f"{run['label']}, seed {run['seed']}",
        "status": str(run["status"]),
        "measured": yaml_of(measured),
        "config": yaml_of(run.get("config")),
    }
