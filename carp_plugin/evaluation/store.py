"""Features of labelled images: computed once, in float32 or as unit rows in half precision, in memory or in a file."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from rich.progress import track
from torch.utils.data import DataLoader

from carp_plugin.errors import UserError


class Features(NamedTuple):
    """Features of a labelled set of images.

    Attributes:
        feats: (N, F) float32 or, from :func:`stream`, float16 on the CPU.
        targets: (N,) int64.
    """

    feats: torch.Tensor
    targets: torch.Tensor


@torch.no_grad()
def extract(
    backbone: nn.Module, loader: DataLoader, device: torch.device, title: str = ""
) -> Features:
    """Features of every image of a loader, with the backbone in evaluation mode.

    Args:
        backbone: images (N, 3, H, W) to features (N, F); its mode is restored afterwards.
        loader: gives (images, labels).
        device: where to compute; the backbone is there already.
        title: shown before the progress bar; no bar where it is empty, or without a terminal.

    Returns:
        Features: float32, in the loader's order.
    """
    feats, targets = [], []
    with _evaluating(backbone):
        for images, labels in _progress(loader, title):
            feats.append(backbone(images.to(device, non_blocking=True)).float().cpu())
            targets.append(labels)
    return Features(torch.cat(feats), torch.cat(targets))


@torch.no_grad()
def stream(
    networks: Mapping[str, Tuple[nn.Module, Mapping[str, nn.Module]]],
    loader: DataLoader,
    device: torch.device,
    title: str = "",
    folder: Optional[Path] = None,
    dtype: torch.dtype = torch.float16,
) -> Dict[str, Features]:
    """Unit rows of several networks, in half precision, in one pass over the images.

    Rows are l2-normalised in float32 and then rounded to float16, that is to 11 significant bits: a cosine
    similarity moves by less than 2^-10, typically by 1e-5, once the rows are brought to unit length again in float32.
    A query whose votes are nearly tied can thereby change its class against float32 features; the fewer the
    dimensions, and the more alike the features, the likelier.

    Args:
        networks: name -> (backbone, heads): the backbone takes images (N, 3, H, W) to features (N, F), each head
            those to features (N, D); ``nn.Identity`` stands for the backbone's own. On ``device`` already.
        loader: gives (images, labels).
        device: where to compute.
        title: as for :func:`extract`.
        folder: where to keep the rows as ``name-head.npy``, which are then mapped into memory, not held there; None
            holds them in memory.
        dtype: float16, or float32 to keep every bit: features of small data, or of networks that tell images apart by
            less than half precision can hold, as random ones do.

    Returns:
        Dict[str, Features]: of ``dtype``, under ``"name/head"``, in the loader's order.

    Raises:
        UserError: the folder cannot be made or a file not be written.
    """
    total = len(loader.dataset)  # type: ignore[arg-type]
    modules = [
        module for backbone, heads in networks.values() for module in (backbone, *heads.values())
    ]
    targets: List[torch.Tensor] = []
    rows: Dict[str, _Rows] = {
        f"{name}/{head}": _Rows(total, dtype, folder and folder / f"{name}-{head}.npy")
        for name, (_, heads) in networks.items()
        for head in heads
    }
    try:
        with _evaluating(*modules):
            for images, labels in _progress(loader, title):
                images = images.to(device, non_blocking=True)
                for name, (backbone, heads) in networks.items():
                    feats = backbone(images)
                    for head, module in heads.items():
                        unit = F.normalize(module(feats).float().flatten(1))
                        rows[f"{name}/{head}"].append(unit.to(dtype).cpu())
                targets.append(labels)
        labels = torch.cat(targets)
        return {key: Features(row.finish(), labels) for key, row in rows.items()}
    except OSError as error:
        raise UserError(
            f"the features cannot be written to {folder} ({error.strerror}); make room or give another folder."
        ) from error
    finally:
        for row in rows.values():
            row.discard()


class _Rows:
    """Collects N rows, in one tensor or in one .npy file that is there as a whole or not at all.

    The file is written, not mapped, while it grows: a full disk is then an error and not a crash.
    """

    def __init__(self, total: int, dtype: torch.dtype, path: Optional[Path]) -> None:
        self.total, self.dtype, self.path = total, dtype, path
        self.unfinished = path and path.with_name(f"{path.name}.{os.getpid()}.part")
        self.count = 0
        self.tensor: Optional[torch.Tensor] = None
        self.file: Optional[BinaryIO] = None

    def append(self, rows: torch.Tensor) -> None:
        if self.path is None or self.unfinished is None:
            if self.tensor is None:
                self.tensor = rows.new_empty(self.total, rows.shape[1])
            self.tensor[self.count : self.count + len(rows)] = rows
        else:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.unfinished, "wb")
                shape = (self.total, rows.shape[1])
                np.lib.format.write_array_header_1_0(
                    self.file, {"descr": self.kind, "fortran_order": False, "shape": shape}
                )
            self.file.write(rows.numpy().astype(self.kind, copy=False).tobytes())
        self.count += len(rows)

    @property
    def kind(self) -> str:
        """numpy's name of the type."""
        return "<f2" if self.dtype == torch.float16 else "<f4"

    def finish(self) -> torch.Tensor:
        if self.count != self.total:
            raise ValueError(f"expected {self.total} rows, one an image, got {self.count}")
        if self.path is None:
            return self.tensor if self.tensor is not None else torch.empty(0, 0)
        if self.file is not None and self.unfinished is not None:
            self.file.close()
            os.replace(self.unfinished, self.path)
        # Copy on write: torch wants memory that it may write to, and the file stays as it is.
        return torch.from_numpy(np.load(self.path, mmap_mode="c"))

    def discard(self) -> None:
        """Leaves nothing half-written behind."""
        if self.file is not None and self.unfinished is not None:
            self.file.close()
            self.unfinished.unlink(missing_ok=True)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and each module's own mode afterwards."""
    before = {module: module.training for top in modules for module in top.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _progress(loader: DataLoader, title: str) -> Any:
    return track(
        loader, description=title, disable=not (title and sys.stdout.isatty()), transient=True
    )
