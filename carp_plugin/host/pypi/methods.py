"""solo-learn 1.0.2's methods and base classes, built from a cfg and spoken to in the current vocabulary."""

from __future__ import annotations

import argparse
import inspect
from functools import partial
from typing import Any, Dict, List, Sequence, Set, cast

import lightning.pytorch as pl
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from solo.methods import METHODS as _SOLO_METHODS
from solo.methods import base as _base
from solo.methods import deepclusterv2 as _deepclusterv2
from solo.utils import backbones as _timm_backbones
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host.common import (
    keys_in_source,
    within_classes,
    zero_without_assignments,
)
from carp_plugin.host.pypi import optim
from carp_plugin.host.pypi.config import with_defaults
from carp_plugin.host.pypi.knn import WeightedKNNClassifier
from carp_plugin.host.pypi.swav import SwAV

BACKBONES = {
    name: getattr(torchvision.models if name.startswith("resnet") else _timm_backbones, name)
    for name in _base.BaseMethod._SUPPORTED_ENCODERS
}

_base.accuracy_at_k = within_classes(_base.accuracy_at_k)
_deepclusterv2.deepclusterv2_loss_func = zero_without_assignments(
    _deepclusterv2.deepclusterv2_loss_func
)

_BASE_DEFAULTS: Dict[str, Any] = {
    "backbone.kwargs": {},
    "optimizer.exclude_bias_n_norm_wd": False,
    "optimizer.kwargs": {},
    "accumulate_grad_batches": 1,
    "scheduler.lr_decay_steps": None,
    "scheduler.min_lr": 0.0,
    "scheduler.warmup_start_lr": 3e-5,
    "scheduler.warmup_epochs": 10,
    "scheduler.interval": "step",
    "knn_eval.enabled": False,
    "knn_eval.k": 20,
    "knn_eval.distance_func": "euclidean",
    "performance.disable_channel_last": False,
    "method_kwargs": {},
}

_MOMENTUM_DEFAULTS = {
    "momentum.base_tau": 0.99,
    "momentum.final_tau": 1.0,
    "momentum.classifier": False,
}


def make_contiguous(module: torch.nn.Module) -> None:
    """Makes every parameter contiguous in memory, in place; some strategies need that."""
    with torch.no_grad():
        for param in module.parameters():
            param.data = param.contiguous()


def _plain(node: Any) -> Any:
    """A cfg node as plain dicts and lists, so that no OmegaConf object reaches a checkpoint."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _base_keywords(cfg: DictConfig) -> Dict[str, Any]:
    """The keywords of 1.0.2's ``BaseMethod`` that a cfg stands for."""
    cifar = cfg.data.dataset in ("cifar10", "cifar100")
    return {
        "encoder": cfg.backbone.name,
        "backbone_args": {**_plain(cfg.backbone.kwargs), "cifar": cifar},
        "num_classes": cfg.data.num_classes,
        "max_epochs": cfg.max_epochs,
        "batch_size": cfg.optimizer.batch_size,
        "optimizer": cfg.optimizer.name,
        "lars": False,
        "lr": cfg.optimizer.lr,
        "weight_decay": cfg.optimizer.weight_decay,
        "classifier_lr": cfg.optimizer.classifier_lr,
        "exclude_bias_n_norm": False,
        "accumulate_grad_batches": cfg.accumulate_grad_batches or 1,
        "extra_optimizer_args": _plain(cfg.optimizer.kwargs),
        "scheduler": cfg.scheduler.name,
        "min_lr": cfg.scheduler.min_lr,
        "warmup_start_lr": cfg.scheduler.warmup_start_lr,
        "warmup_epochs": cfg.scheduler.warmup_epochs,
        "lr_decay_steps": _plain(cfg.scheduler.lr_decay_steps),
        "num_large_crops": cfg.data.num_large_crops,
        "num_small_crops": cfg.data.num_small_crops,
    }


def _momentum_keywords(cfg: DictConfig) -> Dict[str, Any]:
    return {
        "base_tau_momentum": cfg.momentum.base_tau,
        "final_tau_momentum": cfg.momentum.final_tau,
        "momentum_classifier": cfg.momentum.classifier,
    }


class _FromCfg:
    """Constructor, hooks and optimizer of the current API on top of one of 1.0.2's classes.

    Stands before that class in the method resolution order. The backbone is registered as ``backbone`` (and
    ``momentum_backbone``), so that checkpoints carry the current names; ``encoder`` still answers.
    """

    # Lightning 2 refuses modules whose validation_epoch_end can be called; ours calls the host's by hand.
    validation_epoch_end = None
    # True for 1.0.2's own methods; a method written against a cfg reads its method_kwargs itself.
    _method_kwargs_are_keywords = False

    def __init__(self, cfg: DictConfig) -> None:
        cfg = self.add_and_assert_specific_cfg(cfg)
        keywords = _base_keywords(cfg)
        if isinstance(self, _base.BaseMomentumMethod):
            keywords.update(_momentum_keywords(cfg))
        if self._method_kwargs_are_keywords:
            keywords.update(_plain(cfg.method_kwargs))
        super().__init__(**keywords)
        self.cfg = cfg
        self.backbone_name = cfg.backbone.name
        self.no_channel_last = cfg.performance.disable_channel_last
        self.validation_step_outputs: List[Dict[str, Any]] = []
        for old, new in (("encoder", "backbone"), ("momentum_encoder", "momentum_backbone")):
            if old in self._modules:
                self._modules[new] = self._modules.pop(old)
        if cfg.knn_eval.enabled:
            self.knn_eval, self.knn_k = True, cfg.knn_eval.k
            self.knn = WeightedKNNClassifier(k=self.knn_k, distance_fx=cfg.knn_eval.distance_func)

    @property
    def encoder(self) -> torch.nn.Module:
        return self._modules["encoder"] if "encoder" in self._modules else self._modules["backbone"]

    @property
    def momentum_encoder(self) -> torch.nn.Module:
        name = "momentum_encoder" if "momentum_encoder" in self._modules else "momentum_backbone"
        return self._modules[name]

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Adds the defaults that every method shares, in place."""
        return with_defaults(cfg, _BASE_DEFAULTS)

    def configure_optimizers(self) -> Any:
        return optim.configure(self, self.learnable_params)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any, *_: Any) -> None:
        optimizer.zero_grad(set_to_none=True)

    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        # 1.0.2's DINO has a function of this name, with its own argument; Lightning calls its hook by keywords.
        if kwargs:
            pl.LightningModule.clip_gradients(cast(Any, self), *args, **kwargs)
        else:
            super().clip_gradients(*args)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        return super().training_step(self._prepared(batch), batch_idx)

    def _prepared(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The views as a list, in channels_last unless that is switched off."""
        indexes, views, targets = batch
        views = [views] if isinstance(views, torch.Tensor) else list(views)
        if not self.no_channel_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        return [indexes, views, targets]

    def validation_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> Any:
        outs = super().validation_step(batch, batch_idx)
        self.validation_step_outputs.append(outs)
        return outs[0] if isinstance(outs, tuple) else outs

    def on_validation_epoch_end(self) -> None:
        outs = list(self.validation_step_outputs)
        self.validation_step_outputs.clear()
        super().validation_epoch_end(outs)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(self, _base.BaseMomentumMethod):
            stepped = self.trainer.global_step > self.last_step
            super().on_train_batch_end(outputs, batch, batch_idx, 0)
            if stepped:  # 1.0.2 counts batches: with gradients accumulated unevenly tau would overshoot its end
                self.momentum_updater.update_tau(
                    cur_step=self.trainer.global_step,
                    max_steps=self.trainer.estimated_stepping_batches,
                )
        else:
            super().on_train_batch_end(outputs, batch, batch_idx)


class BaseMethod(_FromCfg, _base.BaseMethod):
    """Base of new methods: every crop goes through ``forward`` or ``multicrop_forward``, as on the current host."""

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Features and logits of the online classifier of a batch of images (N, 3, H, W)."""
        return super().base_forward(X)

    def base_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        # 1.0.2's shared step asks base_forward, the current one asks forward.
        return self(X)

    def multicrop_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Features of a batch of small crops."""
        return {"feats": self.backbone(X)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Dict[str, Any]:
        """Runs 1.0.2's step on the large crops, then adds what the small ones give."""
        indexes, views, targets = self._prepared(batch)
        if len(views) != self.num_crops:
            raise UserError(f"a batch came with {len(views)} views, expected {self.num_crops}.")
        large, small = views[: self.num_large_crops], views[self.num_large_crops :]
        crops, multicrop = self.num_crops, self.multicrop
        self.num_crops, self.multicrop = self.num_large_crops, False
        try:
            outs = super().training_step([indexes, large, targets], batch_idx)
        finally:
            self.num_crops, self.multicrop = crops, multicrop
        for out in [self.multicrop_forward(view) for view in small]:
            for key, value in out.items():
                outs[key] = [*outs[key], value]
        return outs


class BaseMomentumMethod(BaseMethod, _base.BaseMomentumMethod):
    """Base of new methods with a momentum copy of the backbone."""

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Adds the defaults of the base and of the momentum copy, in place."""
        return with_defaults(BaseMethod.add_and_assert_specific_cfg(cfg), _MOMENTUM_DEFAULTS)

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Features of a batch of images from the momentum backbone."""
        return super().base_momentum_forward(X)

    def base_momentum_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        return self.momentum_forward(X)


def _own_parameters(cls: type) -> List[str]:
    """Names of the keywords that a method takes beyond those of the base classes."""
    shared: Set[str] = set()
    for parent in (_base.BaseMethod, _base.BaseMomentumMethod):
        shared.update(inspect.signature(parent.__init__).parameters)
    return [name for name in inspect.signature(cls.__init__).parameters if name not in shared]


def _method_defaults(cls: type, name: str, cfg: DictConfig) -> DictConfig:
    """Adds the defaults of one of 1.0.2's methods: its argparse defaults for ``method_kwargs``."""
    shared = BaseMomentumMethod if issubclass(cls, _base.BaseMomentumMethod) else BaseMethod
    cfg = shared.add_and_assert_specific_cfg(cfg)
    own = _own_parameters(cls)
    for key in cfg.method_kwargs:
        if key not in own:
            raise UserError(f"method_kwargs.{key} is not a key of {name}{did_you_mean(key, own)}")
    parser = argparse.ArgumentParser()
    cls.add_model_specific_args(parser)
    defaults = {action.dest: action.default for action in parser._actions}
    return with_defaults(
        cfg, {f"method_kwargs.{key}": defaults[key] for key in own if key in defaults}
    )


def _adapted(name: str, cls: type) -> type:
    """One of 1.0.2's methods as a class that is built from a cfg."""
    defaults = partial(_method_defaults, cls, name)
    attributes = {
        "add_and_assert_specific_cfg": staticmethod(defaults),
        "_method_kwargs_are_keywords": True,
    }
    return type(cls.__name__, (_FromCfg, cls), attributes)


METHODS: Dict[str, type] = {
    name: _adapted(name, cls)
    for name, cls in {**_SOLO_METHODS, "swav": SwAV}.items()
    if issubclass(cls, _base.BaseMethod) and cls is not _base.BaseMethod
}


def method_keys(name: str) -> Set[str]:
    """The keys of ``method_kwargs`` that a method takes; see the current host's function of this name."""
    cls = METHODS[name]
    if not cls._method_kwargs_are_keywords:
        return keys_in_source(cls)
    return set(_own_parameters(cls.__mro__[2]))


__all__ = [
    "BACKBONES",
    "BaseMethod",
    "BaseMomentumMethod",
    "METHODS",
    "MomentumUpdater",
    "initialize_momentum_params",
    "make_contiguous",
    "method_keys",
]
