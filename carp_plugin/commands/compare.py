"""A comparison from its configuration to its page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, List

from carp_plugin.compare import search
from carp_plugin.compare.page import write_page
from carp_plugin.compare.pictures import write_pictures
from carp_plugin.compare.plan import plan as planned
from carp_plugin.compare.results import write_results
from carp_plugin.compare.runner import run
from carp_plugin.compare.statistics import table
from carp_plugin.data.remarks import remarks_on, say_remarks
from carp_plugin.errors import UserError
from carp_plugin.settings.comparison import Asked
from carp_plugin.terminal import say


def compare(asked: Asked) -> Dict[str, Any]:
    """Trains and evaluates every method with every seed, and shows them side by side.

    Args:
        asked: see ``scripts/compare/photos.yaml``.

    Returns:
        Dict[str, Any]: what results.json holds.

    Raises:
        UserError: a mistake in the configuration, the data or the folder of the results.
        KeyboardInterrupt: on Ctrl-C, with a sentence that says what is finished.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    plan = planned(asked)
    say(f"{len(plan.jobs)} runs, {plan.settings.jobs} at a time; results go to {plan.root}")
    say_remarks(remarks_on(plan.first.data))

    def finished(runs: List[Dict[str, Any]]) -> None:
        results = write_results(plan, runs)
        if len(runs) < len(plan.jobs):  # the last page is written below
            _page_so_far(results, plan.root)

    try:
        results = write_results(plan, run(plan, finished))
        page = write_page(results, plan.root)
        searched = "search" in results
        pictures = [] if searched else write_pictures(results, plan.root / "pictures")
    except OSError as error:
        raise UserError(
            f"{plan.root} cannot be written to ({error.strerror}); make room, then the same command goes on: "
            "finished runs stand."
        ) from error
    say(search.table(results["search"]) if searched else table(results))
    say(f"page    {page}")
    for picture in pictures:
        say(f"picture {picture}")
    say(f"results {plan.root / 'results.json'}")
    return results


def _page_so_far(results: Dict[str, Any], root: Path) -> None:
    """The page of the runs that are finished; the others go on, whatever keeps it from being written."""
    try:
        write_page(results, root)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        say(f"warning: the page of the runs so far is not written: {said}", "yellow")
