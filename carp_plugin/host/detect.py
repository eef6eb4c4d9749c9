"""Finds the installed solo-learn without importing it: which kind, version, commit, and where it lies."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Optional

from carp_plugin.errors import HostError

INSTALL = (
    "run `make setup`, or install the release from PyPI with `pip install --no-deps solo-learn==1.0.2`, "
    "or put a checkout of https://github.com/vturrisi/solo-learn on the path"
)


@dataclass(frozen=True)
class HostInfo:
    """Which solo-learn answers behind the door; printed at start and stored with every result.

    Attributes:
        kind: ``"current"`` (cfg API of the main branch) or ``"pypi"`` (1.0.2).
        version: version string of the release or the checkout.
        location: folder of the ``solo`` package.
        commit: git commit of a checkout or of a pip install from git, None where there is none.
    """

    kind: str
    version: str
    location: str
    commit: Optional[str]

    def __str__(self) -> str:
        commit = f", commit {self.commit[:7]}" if self.commit else ""
        return f"solo-learn {self.version}{commit} ({self.location})"

    def as_dict(self) -> Dict[str, Optional[str]]:
        """The four fields as a dictionary that json can write."""
        return asdict(self)


def _distribution_of(package: Path) -> Optional[importlib.metadata.Distribution]:
    """The installed distribution whose ``solo`` folder is ``package``; a checkout on the path has none."""
    for distribution in importlib.metadata.distributions(name="solo-learn"):
        if Path(str(distribution.locate_file("solo"))).resolve() == package:
            return distribution
    return None


def _checkout_version(root: Path) -> str:
    setup = root / "setup.py"
    found = re.search(r'version="([^"]+)"', setup.read_text()) if setup.is_file() else None
    return found.group(1) if found else "unknown"


def checkout_commit(root: Path) -> Optional[str]:
    """The commit of a git checkout whose top is ``root`` (not of a repository that merely contains it)."""
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _kind(package: Path) -> str:
    """Tells the two known shapes of the package apart by their files.

    Raises:
        HostError: if it is neither.
    """
    misc, base = package / "utils" / "misc.py", package / "methods" / "base.py"
    if misc.is_file() and base.is_file():
        source = base.read_text()
        if "omegaconf_select" in misc.read_text() and "import lightning.pytorch" in source:
            return "current"
        if (package / "methods" / "dali.py").is_file() and "self.encoder = " in source:
            return "pypi"
    raise HostError(
        f"the package 'solo' at {package} is neither solo-learn 1.0.2 nor 1.0.6 or later "
        f"(too old, or another package of that name); {INSTALL}."
    )


def detect() -> HostInfo:
    """Looks the installed solo-learn up.

    Returns:
        HostInfo: what is installed.

    Raises:
        HostError: if there is none, or one that the door does not know.
    """
    spec = importlib.util.find_spec("solo")
    if spec is None or not spec.submodule_search_locations:
        raise HostError(f"solo-learn is not installed; {INSTALL}.")
    package = Path(next(iter(spec.submodule_search_locations))).resolve()
    kind = _kind(package)
    distribution = _distribution_of(package)
    if distribution is None:
        version, commit = _checkout_version(package.parent), checkout_commit(package.parent)
    else:
        version = distribution.version
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        commit = origin.get("vcs_info", {}).get("commit_id")
    return HostInfo(kind, version, str(package), commit)


HOST = detect()
