"""Loaders as a pretraining builds them from its settings."""

from typing import Any, Tuple

from carp_plugin.data import loaders
from carp_plugin.settings.pretraining import Pretraining


def training_loader(settings: Pretraining) -> Any:
    """The training loader of a run on one device."""
    data, views, batch_size = settings.data, settings.augmentations, settings.optimizer.batch_size
    return loaders.pretrain_loader(
        data, views, batch_size, 1, settings.seed, patches=settings.patches
    )


def labelled_loaders(settings: Pretraining) -> Tuple[Any, Any]:
    """Loaders of the labelled images, training and validation."""
    views, batch_size = settings.augmentations, settings.optimizer.batch_size
    found = loaders.labelled_loaders(settings.data, views[0], batch_size)
    assert found is not None
    return found
