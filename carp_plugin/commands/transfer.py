"""``main_evaluate.py --datasets``: protocols on several labelled data sets with the same networks, in one table."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Dict, Mapping, NamedTuple

import numpy as np
from rich.table import Table

from carp_plugin.data.transfer import PER_CLASS, Opened, open_dataset
from carp_plugin.errors import UserError
from carp_plugin.evaluation.protocols import PROTOCOLS
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.settings.protocols import Evaluate


class Transferred(NamedTuple):
    """What was found on a data set.

    Attributes:
        opened: the data set.
        images: as the columns saw them.
        results: protocol -> column -> result.
        seconds: of each protocol.
    """

    opened: Opened
    images: Images
    results: Dict[str, Dict[str, Result]]
    seconds: Dict[str, float]


def transfer(images: Images, flags: Evaluate) -> Dict[str, Transferred]:
    """Runs the protocols on labelled images on every data set; all are opened before any is computed.

    Args:
        images: for their networks, device and transform.
        flags: of the command.

    Returns:
        Dict[str, Transferred]: by the names of the data sets.

    Raises:
        UserError: a data set that is not there, or what a protocol says of it.
    """
    protocols = [name for name in dict.fromkeys(flags.protocols) if PROTOCOLS[name].labelled]
    if not protocols:
        raise UserError(
            "--datasets are for protocols on labelled images; add one, such as --protocols knn."
        )
    transform = images.whole or images.transform
    opened = {
        given.partition("=")[0]: open_dataset(
            given, flags.data_root, transform, flags.seed, flags.download
        )
        for given in flags.datasets or ()
    }
    found = {}
    for name, dataset in opened.items():
        loaders = {
            "train": images.loader_of(dataset.train),
            "val": images.loader_of(dataset.test),
        }
        mine = replace(images, loaders=loaders, transform=transform, passes={}, _known={})
        found[name] = Transferred(dataset, mine, {}, {})
        for protocol in protocols:
            started = time.perf_counter()
            try:
                results = PROTOCOLS[protocol].measure(mine, getattr(flags, protocol))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            found[name].results[protocol] = {
                column: with_classes(result, mine.val[column].targets.numpy())
                for column, result in results.items()
            }
            found[name].seconds[protocol] = round(time.perf_counter() - started, 2)
    return found


def with_classes(result: Result, targets: np.ndarray) -> Result:
    """A result with the mean over classes of its accuracy, where the first score is one.

    Args:
        result: of a protocol.
        targets: (Q,) classes of its queries.
    """
    hits = result.per_image.get(next(iter(result.scores)))
    if hits is None or hits.dtype != bool or hits.shape != targets.shape:
        return result
    classes = [float(hits[targets == label].mean()) for label in np.unique(targets)]
    return replace(result, scores={**result.scores, PER_CLASS: 100 * float(np.mean(classes))})


def table(found: Mapping[str, Transferred], title: str) -> Table:
    """For every data set and protocol its first score and the mean per class; a column for every network."""
    shown = Table(
        title=title,
        caption=f"± half of the 95 % interval over images; * is what papers give: top-1, or the {PER_CLASS}",
    )
    for heading in ("data set", "train / test", "protocol", "measure"):
        shown.add_column(heading)
    for column in next(iter(next(iter(found.values())).results.values())):
        shown.add_column(column.replace("/", "\n"), justify="right")
    for name, one in found.items():
        counts = "{:,} / {:,}".format(*(len(part) for part in one.opened[:2]))  # type: ignore[arg-type]
        first = True
        for protocol, results in one.results.items():
            scores = next(iter(results.values())).scores
            rows = [next(iter(scores)), *([PER_CLASS] if PER_CLASS in scores else [])]
            for number, row in enumerate(rows):
                usual = len(rows) > 1 and (row == PER_CLASS) == (one.opened.measure == PER_CLASS)
                shown.add_row(
                    name if first else "",
                    counts if first else "",
                    PROTOCOLS[protocol].title if number == 0 else "",
                    row + " *" * usual,
                    *(result.shown(row) for result in results.values()),
                )
                first = False
        shown.add_section()
    return shown


def as_dict(found: Mapping[str, Transferred], flags: Evaluate) -> Dict[str, Any]:
    """Data set -> everything that defines its numbers, and the numbers, as json takes it."""
    return {
        name: {
            "root": one.opened.root,
            "split": one.opened.split,
            "measure_of_papers": one.opened.measure,
            "train_images": len(one.opened.train),  # type: ignore[arg-type]
            "test_images": len(one.opened.test),  # type: ignore[arg-type]
            "classes": len(one.images.classes),
            "passes": one.images.passes,
            "protocols": {
                protocol: {
                    "title": PROTOCOLS[protocol].title,
                    "settings": getattr(flags, protocol).model_dump(mode="json"),
                    "seconds": one.seconds[protocol],
                    "results": {column: result.as_dict() for column, result in results.items()},
                }
                for protocol, results in one.results.items()
            },
        }
        for name, one in found.items()
    }
