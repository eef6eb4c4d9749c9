"""What our commands ask of Hydra, so that no recipe has to: shared parts on its path, no logs and folders of its own.

Nothing happens on import: another program that uses Hydra beside this package is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, List, Optional

from hydra.conf import HydraConf, RunDir  # stores Hydra's own node, so that ours comes after it
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

PROVIDER = "carp_plugin"
SHARED_PARTS = "pkg://carp_plugin.configs"

#: Groups of Hydra's own in which the choice is ours.
_CHOICES = {"hydra_logging": "disabled", "job_logging": "disabled"}


def install() -> None:
    """Makes Hydra find our shared parts, and write neither logs nor folders; calling it again changes nothing.

    A recipe composes as if it said ``override hydra/hydra_logging: disabled``, the same of ``job_logging``,
    ``hydra.output_subdir: null``, ``hydra.run.dir: .`` and ``hydra.searchpath: [pkg://carp_plugin.configs]``. One that
    does say so composes to the same, and whatever else a recipe or the command line says about Hydra holds.
    """
    Plugins.instance().register(SharedParts)
    ConfigStore.instance().store(group="hydra", name="config", node=QuietHydra(), provider=PROVIDER)


class SharedParts(SearchPathPlugin):
    """Puts the shared parts at the end of Hydra's search path, behind the folder of the recipe."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends them, if nobody else has."""
        if all(element.path != SHARED_PARTS for element in search_path.get_path()):
            search_path.append(provider=PROVIDER, path=SHARED_PARTS)


def _defaults() -> List[Any]:
    """Hydra's defaults list with our choices in it."""
    return [
        {group: _CHOICES.get(group, choice) for group, choice in default.items()}
        for default in HydraConf().defaults
    ]


@dataclass
class QuietHydra(HydraConf):
    """Hydra's own configuration with other defaults: a run says by itself where its files go."""

    defaults: List[Any] = field(default_factory=_defaults)
    run: RunDir = field(default_factory=lambda: RunDir(dir="."))
    output_subdir: Optional[str] = None
