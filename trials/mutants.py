"""Mutants: the code with one small fault, and whether the tests that ought to see it do.

    pip install "carp-plugin[mutants]"
    python trials/mutants.py                       # 12 mutants of each file, seed 0
    python trials/mutants.py --files losses --sample 40 --json mutants.json

cosmic-ray makes the mutants; this draws some of them, each at another place of the file, and runs the tests of that
file on each, in a process forked from one that has torch imported. Runs on Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from rich.progress import track
from rich.table import Table

from carp_plugin.terminal import say

ROOT = Path(__file__).resolve().parent.parent

#: File of the package -> tests that ought to see a fault in it.
TARGETS: Dict[str, str] = {
    "partition.py": "tests/test_partition.py tests/methods",
    "losses/carp.py": "tests/losses/test_carp.py tests/losses/test_carp_chunks.py tests/losses/test_precision.py",
    "losses/collapse.py": "tests/losses/test_collapse.py tests/training/callbacks/test_collapse.py",
    "losses/statistics.py": "tests/losses/test_statistics.py tests/training/callbacks/test_collapse.py",
    "methods/carp.py": "tests/methods",
    "training/resume.py": "tests/training/test_resume.py tests/training/test_named.py",
    "training/state.py": "tests/evaluation/test_checkpoint.py tests/training/test_named.py",
    "training/callbacks/checkpoint.py": "tests/training/callbacks tests/training/test_interruption.py",
    "evaluation/protocols/knn.py": "tests/evaluation/protocols/test_knn.py tests/commands/test_knn.py",
    "evaluation/search.py": "tests/evaluation/protocols/test_knn.py",
    "evaluation/ranking.py": "tests/evaluation/test_ranking.py",
    "evaluation/protocols/voc07.py": "tests/evaluation/protocols",
    "evaluation/checkpoint.py": "tests/evaluation/test_checkpoint.py",
    "data/holdout.py": "tests/data/test_holdout.py",
    "data/subsets.py": "tests/data/test_subsets.py",
}

_TIMEOUT = (
    4.0  # times what the tests take without a fault: an endless loop is a fault that was seen
)


class Mutant(NamedTuple):
    """A file with one fault.

    Attributes:
        file: of the package.
        line: where it is, counted from 1.
        operator: of cosmic-ray.
        before: the line as it stands.
        after: the line with the fault.
        code: the whole file.
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    code: str


def mutants(file: str, sample: int, seed: int) -> List[Mutant]:
    """Some mutants of a file, at different places as far as there are so many.

    Args:
        file: of the package.
        sample: how many.
        seed: of the draw.
    """
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    code = (ROOT / "carp_plugin" / file).read_text()
    provider = OperatorProvider()
    places: Dict[Tuple[int, int], List[Tuple[str, int]]] = {}
    for name in provider:
        if name.startswith("Variable"):  # they take arguments
            continue
        for occurrence, place in enumerate(_positions(code, provider[name]())):
            places.setdefault(place, []).append((name, occurrence))
    dice = random.Random(f"{seed} {file}")
    chosen = dice.sample(sorted(places), min(len(places), 3 * sample))
    found: List[Mutant] = []
    for line, column in chosen:
        name, occurrence = dice.choice(places[line, column])
        changed = mutate_code(code, provider[name](), occurrence)
        if changed is None or changed == code or not _matters(code, changed):
            continue
        old, new = code.splitlines(), changed.splitlines()
        at = next(i for i, pair in enumerate(zip(old, new)) if pair[0] != pair[1])
        found.append(Mutant(file, at + 1, name, old[at].strip(), new[at].strip(), changed))
        if len(found) == sample:
            break
    return found


def _positions(code: str, operator: Any) -> Iterator[Tuple[int, int]]:
    """Where an operator makes a mutant, in the order of its occurrences."""
    from cosmic_ray.ast import Visitor, get_ast

    class Finder(Visitor):
        def __init__(self) -> None:
            self.found: List[Tuple[int, int]] = []

        def visit(self, node: Any) -> Any:
            self.found += [start for start, _ in operator.mutation_positions(node)]
            return node

    finder = Finder()
    finder.walk(get_ast(code))
    yield from finder.found


def _matters(code: str, changed: str) -> bool:
    """Whether what Python runs is another program: annotations are not evaluated."""
    import ast

    class NoAnnotations(ast.NodeTransformer):
        def visit_arg(self, node: ast.arg) -> ast.arg:
            node.annotation = None
            return node

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            node.annotation = ast.Constant(None)
            return self.generic_visit(node)

    try:
        both = [ast.dump(NoAnnotations().visit(ast.parse(text))) for text in (code, changed)]
    except SyntaxError:
        return False
    return both[0] != both[1]


def run_tests(root: Path, tests: Sequence[str], timeout: float) -> Tuple[str, float]:
    """Runs tests in a forked process.

    Args:
        root: a copy of the checkout.
        tests: files and folders.
        timeout: seconds after which they have seen a fault.

    Returns:
        ``"passed"``, ``"failed"`` or ``"timeout"``, and the seconds.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        _in_child(root, tests)
    while time.monotonic() - started < timeout:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            passed = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            return "passed" if passed else "failed", time.monotonic() - started
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", time.monotonic() - started


def _in_child(root: Path, tests: Sequence[str]) -> None:
    import pytest

    code = 3
    try:
        with open(root / "output.txt", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(root)
        sys.path[:] = [str(root), *[p for p in sys.path if p not in ("", str(ROOT))]]
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("carp_plugin", "trials")
        ]:
            del sys.modules[name]
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests]))
    finally:
        os._exit(code)


def _copy(root: Path) -> None:
    """The files that git knows, as they are."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)


def examine(file: str, sample: int, seed: int, root: Path) -> Dict[str, Any]:
    """Kills the mutants of a file.

    Args:
        file: of the package.
        sample: mutants.
        seed: of the draw.
        root: a copy of the checkout.

    Returns:
        Dict[str, Any]: ``file``, ``killed``, ``survived``, ``seconds``, and the survivors.
    """
    tests, place = TARGETS[file].split(), root / "carp_plugin" / file
    sound = place.read_text()
    verdict, seconds = run_tests(root, tests, 900)
    if verdict != "passed":
        said = (root / "output.txt").read_text()[-2000:]
        raise SystemExit(f"{file}: its tests fail without a fault:\n{said}")
    killed, survivors = 0, []
    found = mutants(file, sample, seed)
    for mutant in track(found, file, transient=True, disable=not sys.stdout.isatty()):
        place.write_text(mutant.code)
        if run_tests(root, tests, max(60.0, _TIMEOUT * seconds))[0] == "passed":
            survivors.append(
                {k: getattr(mutant, k) for k in ("line", "operator", "before", "after")}
            )
            say(f"survived: {file}:{mutant.line} {mutant.before}  ->  {mutant.after}", "yellow")
        else:
            killed += 1
        place.write_text(sound)
    return {
        "file": file,
        "killed": killed,
        "survived": len(survivors),
        "seconds": round(seconds, 1),
        "survivors": survivors,
    }


def main() -> int:
    """Examines the files and prints the table.

    Returns:
        int: 0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, default=12, help="mutants of a file (12)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--files", nargs="+", default=[""], help="beginnings of files; all")
    parser.add_argument("--json", help="file for the results")
    given = parser.parse_args()
    import lightning.pytorch  # noqa: F401  so that every test run has it already
    import torch

    torch.set_num_threads(1)
    files = [file for file in TARGETS if file.startswith(tuple(given.files))]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        _copy(root)
        for file in files:
            results.append(examine(file, given.sample, given.seed, root))
            say(f"{file}: {results[-1]['killed']} killed, {results[-1]['survived']} survived")
            if given.json:
                Path(given.json).write_text(
                    json.dumps(
                        {"sample": given.sample, "seed": given.seed, "files": results}, indent=1
                    )
                    + "\n"
                )
    table = Table(title=f"mutants, {given.sample} of a file, seed {given.seed}")
    for column in ("file", "killed", "survived"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for result in results:
        table.add_row(result["file"], str(result["killed"]), str(result["survived"]))
    say(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
