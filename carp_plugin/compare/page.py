"""The page of a comparison: one HTML file that needs nothing else, for a window, a telephone and paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from carp_plugin.compare import gallery, paper, pictures
from carp_plugin.compare.statistics import (
    called,
    doubts_of,
    explanation,
    labels_of,
    lines_of,
    remarks_of,
    usable,
)
from carp_plugin.errors import UserError
from carp_plugin.evaluation.drawing import Picture, svg

_TEMPLATE = "page.html.j2"


class Figure(NamedTuple):
    """A picture on the page.

    Attributes:
        svg: the element.
        caption: said under it, or empty.
    """

    svg: Markup
    caption: str


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
    """Writes the page of a comparison.

    Args:
        results: what ``results.json`` holds, with its summary; whatever is missing in it is left out of the page or
            said to be missing.
        folder: the comparison's, that files in ``results`` are named from; made where it is missing.

    Returns:
        Path: ``folder/index.html``, whole or not written at all.

    Raises:
        UserError: the results have no summary, or the folder cannot be written to.
    """
    if "summary" not in results or "runs" not in results:
        raise UserError(
            "a page is made of results with runs and their summary; give what results.json of a comparison holds."
        )
    folder = Path(folder)
    text = html_of(results, folder)
    path, unfinished = folder / "index.html", folder / f"index.html.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose another folder, or make room."
        ) from error
    return path


def html_of(results: Mapping[str, Any], folder: Path) -> str:
    """The page as text; the same results and gallery files give the same text."""
    environment = Environment(
        loader=PackageLoader("carp_plugin.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    header, lines = lines_of(results)
    summary = results["summary"]
    charts = [pictures.bars(results, [metric]) for metric in summary["metrics"]]
    return environment.get_template(_TEMPLATE).render(
        name=str(results.get("name") or "comparison"),
        claim=_claim(results),
        facts=_facts(results),
        header=header,
        lines=[[cell.split("\n") for cell in line] for line in lines],
        explanation=explanation(summary),
        bars=[_figure(chart) for chart in charts if chart],
        paper=paper.sentences(results),
        beside=[_figure(drawn) for drawn in [paper.picture(results)] if drawn],
        curves=_curves(results),
        terms=_terms(results),
        galleries=_galleries(results, Path(folder)),
        doubts=doubts_of(results["runs"]),
        remarks=remarks_of(results["runs"]),
        runs=[_provenance(run) for run in results["runs"]],
        command=results.get("command") or "",
        config=_yaml(results.get("config")),
        commit=results.get("commit"),
        packages=_pairs(results.get("versions")),
    )


def _figure(picture: Picture, caption: str = "") -> Figure:
    # svg() escapes every text of ours that it takes in; nothing else in it comes from the results.
    return Figure(Markup(svg(picture)), caption)


def _claim(results: Mapping[str, Any]) -> str:
    """What was compared, in one sentence."""
    runs = results["runs"]
    done = sum(usable(run) for run in runs)
    labels = labels_of(runs)
    seeds = len({run["seed"] for run in runs})
    rows = f"{len(labels)} {called(runs)}{'s' * (len(labels) != 1)} ({', '.join(labels)})"
    return f"{rows}, {seeds} seed{'s' * (seeds != 1)}: {done} of {len(runs)} runs were trained to their end."


def _facts(results: Mapping[str, Any]) -> List[Tuple[str, str]]:
    """What was compared, with what, where and when: names and values, empty values left out."""
    data, protocol = results.get("data") or {}, results.get("protocol") or {}
    knn, linear = protocol.get("knn") or {}, protocol.get("linear") or {}
    k = results["summary"]["bootstrap"]["headline_k"]
    facts = [
        ("training images", _said(data, "train_images", "train_path")),
        ("validation images", _said(data, "val_images", "val_path")),
        ("classes", data.get("classes")),
        ("budget", _budget(results)),
        ("k-NN", knn and f"k = {k}, temperature {knn.get('temperature', 'not recorded')}, cosine"),
        ("linear layer", linear and _listed(_flat(linear))),
        ("host", _host(results.get("host"))),
        ("machine", _listed(results.get("machine"))),
        ("commit", results.get("commit")),
        ("date", results.get("date")),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "", {})]


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


def _pairs(mapping: Optional[Mapping[str, Any]]) -> List[Tuple[str, str]]:
    return [(str(key), str(value)) for key, value in (mapping or {}).items() if value is not None]


def _listed(mapping: Optional[Mapping[str, Any]]) -> str:
    return ", ".join(f"{key} {value}" for key, value in _pairs(mapping))


def _host(host: Optional[Mapping[str, Any]]) -> str:
    """solo-learn and its release first, then what else is known of it."""
    rest = {key: value for key, value in (host or {}).items() if key not in ("name", "version")}
    named = " ".join(str(host[key]) for key in ("name", "version") if host and host.get(key))
    return ", ".join(filter(None, [named, _listed(rest)]))


def _curves(results: Mapping[str, Any]) -> List[Figure]:
    found = []
    curves = pictures.knn_curves(results)
    if curves:
        found.append(
            _figure(
                curves,
                "k-NN accuracy over epochs. A line is the mean over seeds, its band their range; solid is the "
                "student, dashed the teacher, dash-dotted the random network. Higher is better; the axis does "
                "not begin at 0.",
            )
        )
    early = pictures.first_early_training(results)
    if early:
        found.append(
            _figure(
                early,
                "Student and teacher of the first CARP run, as in figure A.1 of the paper; the random network is "
                "the level that training has to leave behind. The axis does not begin at 0.",
            )
        )
    return found


def _terms(results: Mapping[str, Any]) -> List[Tuple[str, List[Figure]]]:
    """Pictures of what each method logs; names are made unique, for ids in a page must be."""
    terms = []
    for i, label in enumerate(labels_of(results["runs"])):
        drawn = [
            _figure(picture._replace(name=f"m{i}-{picture.name}"))
            for picture in pictures.loss_terms(results, label)
        ]
        if drawn:
            terms.append((label, drawn))
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
        "measured": _yaml(measured),
        "config": _yaml(run.get("config")),
    }


def _yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) if tree else ""
