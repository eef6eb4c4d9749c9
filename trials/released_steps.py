"""Writes ``tests/golden/steps/*.npz``: ten training steps of the authors' released head, partition and loss in float64.

    python trials/released_steps.py CHECKOUT

CHECKOUT is a clone of github.com/sthalles/carp, whose code has no licence and is not part of this project: only the
numbers that it gives are. Views pass one by one and the teacher follows the optimizer's step, as solo-learn has it; the
release passes the large views as one batch, and moves its teacher before the step.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "steps"
STEPS, IMAGES, FEATURES, HIDDEN, DIM, PROTOTYPES, BLOCK = 10, 6, 64, 32, 16, 32, 8
LR, MOMENTUM, TAU = 0.1, 0.9, 0.9
#: Weights of the released head by the names that CARP has for them.
NAMES = {"mlp.": "projector.", "last_layer.weight_v": "prototypes.weight"}


def main() -> None:
    """Runs the release on made features and writes what it gave."""
    parser = argparse.ArgumentParser(description="golden values of whole training steps")
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT")
    checkout = parser.parse_args().checkout
    if not (checkout / "modules" / "carp_head.py").is_file():
        parser.error(f"{checkout} is no clone of sthalles/carp: modules/carp_head.py is not there")
    for views in (2, 4):
        path = GOLDEN / f"{views}views.npz"
        np.savez_compressed(path, **released(checkout, views))
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")


def released(checkout: Path, views: int) -> Dict[str, Any]:
    """Weights before and after, features, partitions and losses of ten steps."""
    head, loss, partition = _modules(checkout)
    torch.manual_seed(0)
    student, teacher = (
        head.CARPHead(FEATURES, PROTOTYPES, True, True, 3, HIDDEN, DIM).double() for _ in range(2)
    )
    teacher.load_state_dict(student.state_dict())
    before = _weights(student)
    blocks = partition.RandomPartition(
        types.SimpleNamespace(ncrops=views, out_dim=PROTOTYPES)
    ).double()
    criterion = loss.CARPLoss()
    learning = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=LR, momentum=MOMENTUM)
    features = torch.randn(STEPS, views, IMAGES, FEATURES).double()
    drawn = _record_partitions()
    losses = []
    for batch in features:
        of_student = torch.cat([student(view) for view in batch])
        with torch.no_grad():
            of_teacher = torch.cat([teacher(view) for view in batch[:2]])
        consistency, gap = criterion(*blocks(of_student, of_teacher, BLOCK))
        optimizer.zero_grad()
        (consistency + gap).backward()
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(student.parameters(), teacher.parameters()):
                theirs.mul_(TAU).add_(ours, alpha=1 - TAU)
        losses.append((consistency.item(), gap.item()))
    return {
        "features": features.float().numpy(),  # exactly: they were drawn in float32
        "partitions": torch.stack(drawn).numpy(),
        "losses": np.array(losses),
        **{f"before.{name}": value for name, value in before.items()},
        **{f"student.{name}": value for name, value in _weights(student).items()},
        **{f"teacher.{name}": value for name, value in _weights(teacher).items()},
        **{"lr": LR, "momentum": MOMENTUM, "tau": TAU, "partition_size": BLOCK},
    }


def _modules(checkout: Path) -> List[Any]:
    """The release's head, loss and partition, without the rest of it, on a machine that need not have a GPU."""
    distributed = types.ModuleType("utils")
    distributed.is_dist_avail_and_initialized = lambda: False  # type: ignore[attr-defined]
    sys.modules["utils"] = distributed
    found = []
    for name in ("carp_head", "carp_loss", "random_partition"):
        spec = importlib.util.spec_from_file_location(name, checkout / "modules" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        found.append(module)
    return found


def _record_partitions() -> List[torch.Tensor]:
    """The list that every partition drawn from here on is put into; what was to be on a GPU stays here."""
    drawn: List[torch.Tensor] = []
    multinomial = torch.multinomial

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(multinomial(*args, **kwargs))
        return drawn[-1]

    torch.multinomial = record
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    return drawn


def _weights(head: torch.nn.Module) -> Dict[str, np.ndarray]:
    """Copies of a head's tensors, by our names; the rows' length is 1 and is left out."""
    named = {}
    for name, value in head.state_dict().items():
        for theirs, ours in NAMES.items():
            if name.startswith(theirs):
                named[name.replace(theirs, ours)] = value.detach().clone().numpy()
    return named


if __name__ == "__main__":
    main()
