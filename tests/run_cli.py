"""Runs an entry point of the repository inside this process, as `python SCRIPT ARGUMENTS` would."""

import runpy
import sys
from pathlib import Path
from typing import List, Tuple

from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parent.parent


def run_cli(capsys, monkeypatch, script: str, arguments: List[str]) -> Tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    path = ROOT / script
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    GlobalHydra.instance().clear()
    code = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        GlobalHydra.instance().clear()
    out, err = capsys.readouterr()
    return code, out, err
