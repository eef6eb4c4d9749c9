"""The protocols on frozen features, by name; a module each, of the shape of ``evaluation/shape.py``."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from carp_plugin.data.loaders import evaluation_transform, whole_transform
from carp_plugin.evaluation.checkpoint import Pretrained
from carp_plugin.evaluation.protocols import (
    clustering,
    copies,
    knn,
    landmarks,
    logistic,
    retrieval,
    voc07,
)
from carp_plugin.evaluation.shape import Images, Result
from carp_plugin.settings.trained import Trained


def _nothing(model: Optional[nn.Module]) -> Tuple[str, ...]:
    return ()


class Protocol(NamedTuple):
    """A protocol.

    Attributes:
        title: for people.
        measure: (images, its node of the settings) -> column -> result.
        labelled: whether it reads the labelled training and validation images, and not images of its own.
        headline: its first score, for people.
        besides: the method -> features that it reads besides those that are evaluated.
    """

    title: str
    measure: Callable[[Images, Any], Dict[str, Result]]
    labelled: bool = True
    headline: str = ""
    besides: Callable[[Optional[nn.Module]], Tuple[str, ...]] = _nothing


#: Name, which is that of its node in the settings -> protocol.
PROTOCOLS: Dict[str, Protocol] = {
    "knn": Protocol("k-NN", knn.measure),
    "logistic": Protocol("logistic regression", logistic.measure),
    "clustering": Protocol(
        "clustering", clustering.measure, headline="accuracy", besides=clustering.besides
    ),
    "retrieval": Protocol("retrieval", retrieval.measure, headline="mAP"),
    "landmarks": Protocol("landmarks", landmarks.measure, labelled=False, headline="mAP, medium"),
    "copies": Protocol("copy detection", copies.measure, headline="recall@1"),
    "voc07": Protocol("VOC07 SVM", voc07.measure, labelled=False, headline="mAP"),
}


def besides(
    pretrained: Pretrained,
    names: Iterable[str],
    networks: Mapping[str, Tuple[nn.Module, Mapping[str, nn.Module]]],
    device: torch.device,
) -> Dict[str, Dict[str, nn.Module]]:
    """What :class:`Images` takes along for the protocols that are named.

    Args:
        pretrained: the method.
        names: of protocols.
        networks: what is evaluated.
        device: where features are computed.
    """
    kinds = {kind for name in names for kind in PROTOCOLS[name].besides(pretrained.model)}
    return {
        network: {kind: pretrained.projector(network).to(device) for kind in kinds - set(heads)}
        for network, (_, heads) in networks.items()
        if pretrained.has_projector(network)
    }


def images_of(
    pretrained: Pretrained,
    trained: Trained,
    networks: Mapping[str, Tuple[nn.Module, Mapping[str, nn.Module]]],
    loaders: Mapping[str, DataLoader],
    device: torch.device,
    names: Iterable[str],
    dtype: torch.dtype,
    seed: int,
) -> Images:
    """The images of a checkpoint's data, for the protocols that are named.

    Args:
        pretrained: the method.
        trained: what is known of its pretraining, with the data that are evaluated on.
        networks: what is evaluated.
        loaders: of the labelled images, ``"train"`` and ``"val"``; none where none are read.
        device: where features are computed.
        names: of protocols.
        dtype: that unit rows are kept in.
        seed: of every draw.
    """
    data = trained.data
    return Images(
        networks=networks,
        loaders=loaders,
        device=device,
        transform=evaluation_transform(data.dataset, data.eval_transform, trained.view),
        whole=whole_transform(data.dataset, data.eval_transform, trained.view),
        model=pretrained.model,
        besides=besides(pretrained, names, networks, device),
        dtype=dtype,
        seed=seed,
        batch_size=trained.optimizer.batch_size,
        num_workers=data.num_workers,
    )
