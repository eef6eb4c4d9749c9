"""Runs the project's scripts one after another inside one process, which saves the seconds that a start costs.

Reads cases as JSON lines from standard input, each with ``script``, ``arguments`` and ``folder``, and answers each with
a JSON line: ``code``, ``out`` and ``err``, as ``python SCRIPT ARGUMENTS`` started in that folder would leave them. A
stack trace that would reach the terminal is in ``err``.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, arguments: List[str]) -> int:
    """Exit code of a script of the repository."""
    from hydra.core.global_hydra import GlobalHydra

    path = str(ROOT / script)
    sys.argv = [path, *arguments]
    GlobalHydra.instance().clear()
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # what Python itself would print before it ends
        traceback.print_exc()
        return 1
    return 0


def answer(case: Dict[str, Any]) -> Dict[str, Any]:
    """Runs a case with everything that it prints, also from below Python, in files."""
    os.chdir(case["folder"])
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = run(case["script"], case["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return {"code": code, "out": said[0], "err": said[1]}


def main() -> None:
    """Serves until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")  # as with `python -W ignore`
    for name in (
        "carp_plugin.commands.pretrain",
        "carp_plugin.commands.linear",
        "carp_plugin.commands.finetune",
        "carp_plugin.commands.knn",
    ):
        importlib.import_module(name)  # once, which takes seconds
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
