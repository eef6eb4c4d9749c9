"""What a command line comes to: the settings that the command would be run with."""

import subprocess
import sys
from dataclasses import replace
from typing import Any, List

from hydra.core.global_hydra import GlobalHydra

from carp_plugin.commands.cli import Command
from carp_plugin.commands.entries import PRETRAIN

_KEPT: List[Any] = []


def keep(settings: Any) -> None:
    """Stands in the place of what a command does."""
    _KEPT.append(settings)


def settings_of(arguments: List[str], command: Command = PRETRAIN) -> Any:
    """The settings that these arguments mean.

    Raises:
        SystemExit: they are a mistake.
    """
    GlobalHydra.instance().clear()
    _KEPT.clear()
    before = sys.argv
    sys.argv = [command.script, *arguments]
    try:
        replace(command, run="tests.settings.captured:keep").main(arguments)
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
    return _KEPT[-1]


def typed_in_bash(line: str, folder: Any) -> List[str]:
    """The words that bash makes of a line."""
    script = f'printf "%s\\0" {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]
