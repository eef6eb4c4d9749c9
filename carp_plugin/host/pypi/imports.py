"""Lets solo-learn 1.0.2 be imported beside today's lightning, and leaves the interpreter as it was.

1.0.2 imports ``pytorch_lightning`` and one class of ``pl_bolts``. While it is being imported these names lead to
``lightning.pytorch`` and to our schedule of the same name; afterwards a real pytorch_lightning is itself again.
"""

from __future__ import annotations

import sys
import types
import warnings
from contextlib import contextmanager
from typing import Iterator

import lightning.pytorch
import lightning.pytorch.callbacks
import torch

from carp_plugin.host.pypi.optim import LinearWarmupCosineAnnealingLR


def _bolts() -> dict:
    """The part of lightning-bolts that 1.0.2 imports, as modules."""
    names = ["pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler"]
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].LinearWarmupCosineAnnealingLR = LinearWarmupCosineAnnealingLR  # type: ignore[attr-defined]
    return modules


@contextmanager
def solo_importable() -> Iterator[None]:
    """Within this context ``import solo`` works for 1.0.2."""
    stand_ins = {
        "pytorch_lightning": lightning.pytorch,
        "pytorch_lightning.callbacks": lightning.pytorch.callbacks,
        **_bolts(),
    }
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch.cuda.amp decorators in its whitening
            warnings.simplefilter("ignore", DeprecationWarning)  # timm's old module names
            yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)


class _TorchWithRemovedFunctions:
    """torch, with two functions that 1.0.2's whitening calls and torch has removed since."""

    @staticmethod
    def cholesky(matrix: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(matrix)

    @staticmethod
    def triangular_solve(right: torch.Tensor, matrix: torch.Tensor, upper: bool = True) -> tuple:
        return torch.linalg.solve_triangular(matrix, right, upper=upper), matrix

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def mend_whitening() -> None:
    """Gives W-MSE's whitening the functions it was written with."""
    import solo.utils.whitening

    solo.utils.whitening.torch = _TorchWithRemovedFunctions()
