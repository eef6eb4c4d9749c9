"""What both hosts share behind the door: what a resumed run must match, top-k, DALI's files, a method's keys."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Callable, List, Sequence, Set, Tuple

import torch

from carp_plugin.errors import UserError

#: Settings that, where they differ, make a checkpoint another run. solo-learn compares name, backbone, method,
#: epochs, optimizer and wandb only, so that a changed ``partition_size`` would silently resume the old run.
RESUME_MUST_MATCH: List[str] = [
    "method_kwargs",
    "momentum",
    "data.train_path",
    "data.no_labels",
    "data.fraction",
    "augmentations",
    "scheduler",
    "optimizer.kwargs",
    "optimizer.classifier_lr",
    "accumulate_grad_batches",
    "precision",
    "seed",
    "features",  # of a linear evaluation: which network of which checkpoint, and how its images are cut
]

DALI_MISSING = (
    "data.format=dali needs NVIDIA DALI, which is not installed (or does not import here: {why}); "
    "install it with `pip install carp-plugin[dali]`, or set data.format=image_folder."
)


def within_classes(accuracy_at_k: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """The host's accuracy, for fewer classes than k too: then every class is among the first k, and it is 100 %.

    Args:
        accuracy_at_k: outputs (N, C), targets (N,) and a sequence of k; fails where a k is above C.
    """

    def limited(
        outputs: torch.Tensor, targets: torch.Tensor, top_k: Sequence[int] = (1, 5)
    ) -> Sequence[Any]:
        return accuracy_at_k(outputs, targets, top_k=[min(k, outputs.size(1)) for k in top_k])

    return limited


def zero_without_assignments(loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The host's loss of DeepClusterV2, for its first epoch too: no image has a cluster yet, so the mean is 0 / 0.

    Args:
        loss_func: outputs (P, V, N, C), assignments with -1 for an image without a cluster, temperature.
    """

    def limited(
        outputs: torch.Tensor, assignments: torch.Tensor, temperature: float = 0.1
    ) -> torch.Tensor:
        if (assignments < 0).all():
            return 0 * outputs.sum()  # still a function of all parameters
        return loss_func(outputs, assignments, temperature)

    return limited


def missing_dali(why: BaseException) -> type:
    """A stand-in for DALI's classes that says how to install it when it is built.

    Args:
        why: the ImportError that the host's DALI module raised.
    """

    class MissingDALI:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise UserError(DALI_MISSING.format(why=why))

    return MissingDALI


class ListedFolder(type(Path())):  # type: ignore[misc]
    """A folder whose files are listed already.

    Attributes:
        samples: (path, label) of each.
    """

    samples: Sequence[Tuple[str, int]]


def serve_files(module: Any, samples: Sequence[Tuple[str, int]]) -> None:
    """Lets a DALI data module serve these files, in place of those that it would find by itself.

    DALI's reader and the hosts list a folder by rules of their own: not below the class folders, and whatever lies
    there, image or not.

    Args:
        module: not set up yet; changed in place.
        samples: (path, label) of each file.
    """
    folder = ListedFolder(module.train_data_path)
    folder.samples = samples
    module.train_data_path = folder
    module.data_fraction = -1  # the samples are the part already


class ServesListed:
    """Before a pipeline of the host's, or what builds one: its reader serves the files of a :class:`ListedFolder`."""

    def __init__(self, data_path: Any, **kwargs: Any) -> None:
        super().__init__(data_path, **kwargs)  # type: ignore[call-arg]
        samples = getattr(data_path, "samples", None)
        if samples is None:
            return
        from nvidia.dali import ops

        labels = [label for _, label in samples]
        if kwargs.get("encode_indexes_into_labels"):
            self.conversion_map, labels = labels, list(range(len(labels)))
        self.reader = ops.readers.File(
            files=[path for path, _ in samples],
            labels=labels,
            shard_id=kwargs["shard_id"],
            num_shards=kwargs["num_shards"],
            shuffle_after_epoch=True,
        )


def keys_in_source(cls: type) -> Set[str]:
    """The keys of ``method_kwargs`` that a cfg-based method reads, as its source spells them.

    Args:
        cls: the method's class.

    Returns:
        Set[str]: names of the keys; empty where they cannot be told.
    """
    return set(re.findall(r"method_kwargs\.(\w+)", inspect.getsource(cls)))
