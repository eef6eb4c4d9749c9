"""The tensors of a checkpoint: found, read without running code, and compared with those of a model."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Tuple, Union

import torch

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host.containers import CONTAINERS

SUFFIXES = (".ckpt", ".pth", ".pt")

#: Network of a method -> the attribute, and the prefix of the tensors, of its backbone in both hosts.
NETWORKS = {"student": "backbone", "teacher": "momentum_backbone"}

#: What solo-learn 1.0.5 and earlier called the networks.
_OLD_NAMES = {"encoder.": "backbone.", "momentum_encoder.": "momentum_backbone."}

#: Buffers that a method makes only while it trains: SwAV's queue, DeepClusterV2's memory, All4One's cache of a
#: positional encoding, labels and clusters of SeLa v2 and PCL v2, PIRL's memory of all images. A checkpoint holds them
#: and a freshly built method does not. No backbone or projector reads them, so that they may be left over, under
#: exactly these names, and the sentence names them. Any other tensor that is left over is an error.
TRAINING_BUFFERS = (
    "queue",
    "local_memory_index",
    "local_memory_embeddings",
    "pos_enc.penc.penc.cached_penc",
    "image_memory",
    "image_labels",
    "plan_log_v",
    "plan_prototypes",
    "labels_epoch",
    "image_clusters",
    "centroids",
    "concentrations",
    "clusters_epoch",
    "memory_bank",
)


def find_checkpoint(path: Union[str, Path]) -> Path:
    """The checkpoint that a path means.

    Args:
        path: a ``.ckpt``, ``.pth`` or ``.pt`` file, or the folder of a run: then the ``.ckpt`` of the highest epoch,
            as its name says (``…-ep=9.ckpt``, ``epoch=9-….ckpt``; ``…-ep=9-step=40.ckpt`` was written within it).

    Returns:
        Path: of the file.

    Raises:
        UserError: there is no such file or folder, no checkpoint in it, or more than one of the same epoch.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(
                f"{path} is no checkpoint; give a {', '.join(SUFFIXES)} file or a run's folder."
            )
        return path
    if not path.is_dir():
        raise UserError(f"the checkpoint {path} does not exist{_near(path)}")
    found = sorted(path.glob("*.ckpt"))
    if not found:
        below = sorted({str(inner.parent) for inner in path.rglob("*.ckpt")})
        hint = "one of its runs: " + ", ".join(below[:5]) if below else "a run's folder."
        raise UserError(f"the folder {path} holds no .ckpt file; give {hint}")
    newest = max(place_in_name(entry) for entry in found)
    last = [entry for entry in found if place_in_name(entry) == newest]
    if len(last) > 1:
        names = ", ".join(entry.name for entry in last[:5])
        raise UserError(
            f"the folder {path} holds several checkpoints that could be meant ({names}); give the file itself."
        )
    return last[0]


def _near(path: Path) -> str:
    """What lies where the path was looked for and is spelt alike."""
    if not path.parent.is_dir():
        return f", nor does the folder {path.parent}; check the spelling."
    beside = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    return did_you_mean(path.name, beside) or "; give a checkpoint file or a run's folder."


def epoch_in_name(path: Path) -> int:
    """The epoch that a checkpoint's name gives, -1 where it gives none."""
    found = re.search(r"ep(?:och)?=(\d+)", path.stem)
    return int(found.group(1)) if found else -1


def place_in_name(path: Path) -> Tuple[int, float]:
    """How far training was, as a checkpoint's name says: the epoch, and the step if it was written within one.

    Sorts checkpoints in the order of training: that of a whole epoch comes after those within it.
    """
    step = re.search(r"ep=\d+-step=(\d+)$", path.stem)
    return epoch_in_name(path), float(step.group(1)) if step else math.inf


def read_checkpoint(path: Union[str, Path]) -> Dict[str, Any]:
    """Reads a checkpoint without running any code that it may hold; tensors stay in the file until they are used.

    Args:
        path: of the file.

    Returns:
        Dict[str, Any]: what it holds; ``state_dict`` maps names to tensors.

    Raises:
        UserError: missing, torn, refused because it would run code, or without tensors under ``state_dict``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist{_near(path)}")
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"  # torch 1.6 and later; only those can be mapped
        with warnings.catch_warnings(), _containers_allowed():
            warnings.simplefilter("ignore")  # an odd file's protocol; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        # torch raises whatever its readers raise: unpickling, zip and runtime errors, KeyError, EOFError
        raise UserError(_why_unreadable(path, error)) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else ""
        holds = keys or f"a {type(content).__name__}"
        raise UserError(
            f"the checkpoint {path} has no 'state_dict' of tensors (it holds {holds}); "
            "give one that a training run wrote."
        )
    return content


def read_state_dict(path: Union[str, Path]) -> Dict[str, torch.Tensor]:
    """The tensors of a checkpoint by their names; see :func:`read_checkpoint`."""
    return read_checkpoint(path)["state_dict"]


def _containers_allowed() -> ContextManager[Any]:
    allow = getattr(torch.serialization, "safe_globals", None)  # torch 2.5 and later
    return allow(CONTAINERS) if allow else nullcontext()


def _why_unreadable(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    unsafe = re.search(
        r"(?:GLOBAL|global):? (?:GLOBAL )?([\w.]+\.\w+) (?:was not an allowed|whose)", text
    )
    if isinstance(error, pickle.UnpicklingError) and unsafe:
        return (
            f"the checkpoint {path} is refused: besides tensors it holds {unsafe.group(1)}, which could run code when "
            "it is read (nothing was run); save its 'state_dict' alone and give that file."
        )
    if isinstance(error, OSError):
        return f"the checkpoint {path} cannot be read ({error.strerror}); check its permissions."
    return (
        f"the checkpoint {path} cannot be read: it is torn or no checkpoint ({type(error).__name__}); "
        "copy it again, or give another one."
    )


def current_names(state: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The same tensors under today's names, where an older release called a backbone ``encoder``."""
    renamed = {}
    for name, tensor in state.items():
        for old, new in _OLD_NAMES.items():
            if name.startswith(old):
                name = new + name[len(old) :]
        renamed[name] = tensor
    return renamed


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint fit a model; names in the order of the model or the checkpoint.

    Attributes:
        total: tensors of the model.
        missing: of the model, not in the checkpoint.
        left_over: of the checkpoint, not in the model.
        reshaped: in both, but of other shapes.
    """

    total: int
    missing: List[str]
    left_over: List[str]
    reshaped: List[str]

    def complaint(self) -> str:
        """What does not fit, as a part of a sentence; empty where everything does."""
        kinds = (
            ("of another shape", self.reshaped),
            ("missing", self.missing),
            ("left over", self.left_over),
        )
        said = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in kinds
            if names
        ]
        fitting = self.total - len(self.missing) - len(self.reshaped)
        return f"{fitting} of {self.total} tensors fit, " + ", ".join(said) if said else ""


#: What wrappers put into the names of tensors, and how the names without it are had.
_WRAPPERS = {
    "_orig_mod": ("torch.compile", "model._orig_mod.state_dict()"),
    "module": ("DistributedDataParallel or DataParallel", "model.module.state_dict()"),
}


def wrapper_in(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Optional[str]:
    """Which wrapper has put its name into those of a checkpoint, which would fit without it; in a part of a sentence.

    Args:
        own: tensors of the model.
        state: tensors of the checkpoint.
    """
    for word, (who, how) in _WRAPPERS.items():
        bare = {".".join(part for part in name.split(".") if part != word) for name in state}
        if bare != set(state) and bare == set(own):
            return f"the names of its tensors hold `{word}.`, which {who} puts there; save {how} instead"
    return None


def fit(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Fit:
    """Compares names and shapes of a model's tensors with those of a checkpoint."""
    return Fit(
        total=len(own),
        missing=[name for name in own if name not in state],
        left_over=[name for name in state if name not in own],
        reshaped=[name for name in own if name in state and state[name].shape != own[name].shape],
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
