"""CARP's loss on 1, 2 and 4 ranks against one process on the concatenated batch: deviations, and what is sent.

python trials/ranks.py                     a table, and results/trials/ranks.json
python trials/ranks.py --json PATH --prototypes 65536 --partition 512 --images 64

Every rank is a process of its own on the CPU, joined by gloo, with different images. Deviations are relative, in norm,
the largest over the two functions of the loss and over 2 and 4 views: of the loss and both terms, and of the gradients
with respect to embeddings and prototypes, averaged over the ranks as DistributedDataParallel averages them. What is
sent is counted below torch.distributed, in forward and backward of one step.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import write_result
from carp_plugin.losses import carp_loss_func, carp_objective_func
from carp_plugin.terminal import say
from tests.distributed import Collectives, run_on_ranks

VIEWS = (2, 4)  # two large views, and with two small ones as in multi-crop
PATHS = {"fused": True, "plain": False}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FUNCTIONS = ("carp_objective_func", "carp_loss_func")


class Size(NamedTuple):
    """Of the problem: K prototypes in blocks of B, N images a rank, embeddings of D."""

    prototypes: int
    partition: int
    images: int
    dim: int


class Case(NamedTuple):
    """One way to the loss."""

    path: str
    dtype: str
    function: str
    views: int


CASES = [Case(*each) for each in itertools.product(PATHS, DTYPES, FUNCTIONS, VIEWS)]


def problem(case: Case, size: Size, world_size: int) -> Tuple[torch.Tensor, ...]:
    """Embeddings of student (V, W * N, D) and teacher (2, W * N, D), two sets of prototypes (K, D), partition (K,)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images = world_size * size.images
    scale = torch.linspace(0.5, 2, world_size).repeat_interleave(size.images)[:, None]
    student, teacher = (
        scale * normal(case.views, images, size.dim),
        scale * normal(2, images, size.dim),
    )
    prototypes = normal(2, size.prototypes, size.dim)
    order = torch.randperm(size.prototypes, generator=generator)
    dtype = DTYPES[case.dtype]
    return student.to(dtype), teacher.to(dtype), *prototypes.to(dtype), order


def step(case: Case, size: Size, inputs: Tuple[torch.Tensor, ...]) -> Dict[str, torch.Tensor]:
    """Loss, terms and gradients of one step."""
    student, teacher, own, others, order = inputs
    student, own = student.clone().requires_grad_(), own.clone().requires_grad_()
    arguments = (list(student), list(teacher), own, others, order, size.partition)
    if case.function == "carp_objective_func":
        loss, terms = carp_objective_func(*arguments, fused=PATHS[case.path])
    else:
        terms = carp_loss_func(*arguments, fused=PATHS[case.path])
        loss = terms.consistency + terms.entropy_gap
    loss.backward()
    assert student.grad is not None and own.grad is not None
    return {
        "loss": loss.detach(),
        "consistency": terms.consistency.detach(),
        "entropy_gap": terms.entropy_gap.detach(),
        "embeddings": student.grad,
        "prototypes": own.grad,
    }


def on_rank(
    rank: int, world_size: int, size: Size
) -> Dict[Case, Tuple[Dict[str, torch.Tensor], List[Any]]]:
    """What a rank finds for its own images, and the collectives of the step."""
    found = {}
    for case in CASES:
        student, teacher, *rest = problem(case, size, world_size)
        mine = slice(rank * size.images, (rank + 1) * size.images)
        with Collectives() as watched:
            result = step(case, size, (student[:, mine], teacher[:, mine], *rest))
        found[case] = result, watched.calls
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).double().norm() / expected.double().norm())


def deviations(case: Case, size: Size, world_size: int, answers: List[Any]) -> Tuple[float, float]:
    """Largest relative deviation of loss and terms, and of the gradients, from one process."""
    expected = step(case, size, problem(case, size, world_size))
    results = [answer[case][0] for answer in answers]
    values = [
        relative(torch.stack([result[name] for result in results]).mean(0), expected[name])
        for name in ("loss", "consistency", "entropy_gap")
    ]
    embeddings = torch.cat([result["embeddings"] for result in results], dim=1) / world_size
    prototypes = torch.stack([result["prototypes"] for result in results]).mean(0)
    gradients = (
        relative(embeddings, expected["embeddings"]),
        relative(prototypes, expected["prototypes"]),
    )
    return max(values), max(gradients)


def rows_of(size: Size, world_size: int) -> List[Dict[str, Any]]:
    """A row for each path and data type, the worst of its cases."""
    with tempfile.TemporaryDirectory() as folder:
        answers = run_on_ranks(on_rank, world_size, Path(folder), world_size, size, timeout=600)
    rows = []
    for path, dtype in itertools.product(PATHS, DTYPES):
        cases = [case for case in CASES if (case.path, case.dtype) == (path, dtype)]
        worst = [deviations(case, size, world_size, answers) for case in cases]
        sent = [answer[case][1] for answer in answers for case in cases]
        rows.append(
            {
                "ranks": world_size,
                "path": path,
                "dtype": dtype,
                "loss": max(loss for loss, _ in worst),
                "gradients": max(gradients for _, gradients in worst),
                "numbers_sent": sorted({sum(call.elements for call in calls) for calls in sent}),
                "collectives": sorted({len(calls) for calls in sent}),
                "kinds": sorted({call.name for calls in sent for call in calls}),
            }
        )
    return rows


def table_of(rows: List[Dict[str, Any]], size: Size) -> Table:
    """The rows on the terminal."""
    K, B, N, D = size
    table = Table(
        title=f"ranks against one process: K = {K}, B = {B}, N = {N} images a rank, D = {D}"
    )
    for heading in (
        "ranks",
        "path",
        "type",
        "loss and terms",
        "gradients",
        "numbers sent",
        "collectives",
    ):
        table.add_column(heading, justify="left" if heading in ("path", "type") else "right")
    for row in rows:
        sent = ", ".join(str(number) for number in row["numbers_sent"])
        calls = ", ".join(str(number) for number in row["collectives"])
        kinds = f"{calls} ({', '.join(row['kinds']) or 'none'})"
        near = f"{row['loss']:.1e}", f"{row['gradients']:.1e}"
        table.add_row(str(row["ranks"]), row["path"], row["dtype"], *near, sent, kinds)
    return table


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="CARP's loss on several ranks against one process")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--prototypes", type=int, default=4096, help="K")
    parser.add_argument("--partition", type=int, default=512, help="B, divides K")
    parser.add_argument("--images", type=int, default=32, help="N, of a rank")
    parser.add_argument("--dim", type=int, default=64, help="D, size of an embedding")
    parser.add_argument(
        "--json", type=Path, default=Path("results/trials/ranks.json"), help="where the rows go"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the ranks have
    size = Size(options.prototypes, options.partition, options.images, options.dim)
    rows = []
    for world_size in track(options.ranks, description="ranks"):
        rows += rows_of(size, world_size)
    say(table_of(rows, size))
    write_result(options.json, {"size": size._asdict(), "rows": rows})


if __name__ == "__main__":
    main()
