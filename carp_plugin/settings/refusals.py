"""What Hydra, OmegaConf and YAML refuse, in one sentence each."""

from __future__ import annotations

import re
from typing import Optional

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException


def refusal(error: Exception) -> Optional[str]:
    """What was refused, in a sentence; None for the error of anybody else."""
    if isinstance(error, OverrideParseException):
        return f"the override {error.override!r} cannot be read; expected KEY=VALUE."
    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        file = f" {mark.name}" if mark else ", or one that it takes in,"
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = problem or " ".join(str(error).split())
        return f"the configuration{file} is no YAML{where}: {reason}; mend it there."
    misfit = re.match(r"Error merging override \++(?P<key>[^=]+)=", str(error))
    if misfit and isinstance(error, HydraException):
        key, given = misfit["key"], str(error)[misfit.end("key") + 1 :].strip()
        return (
            f"{key}={given} is of another kind than what the configuration has there; "
            f"give a list for a list, and keys one by one ({key}.KEY=VALUE)."
        )
    if isinstance(error, HydraException):
        # where it looked is of no use to a user
        return " ".join(str(error).split("\nConfig search path")[0].split())
    if isinstance(error, OmegaConfBaseException):
        return " ".join(str(error).split())
    return None
