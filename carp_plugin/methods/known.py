"""What the installed host knows of methods, backbones and optimizers, against what a run is told."""

from __future__ import annotations

import inspect
from typing import Any, Dict, Iterable, List, Mapping, Set, Union

import torch

from carp_plugin import register
from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.host import BACKBONES, LARS, METHODS, method_keys
from carp_plugin.settings.finetune import FinetuneOptimizer
from carp_plugin.settings.parts import Optimizer
from carp_plugin.settings.pretraining import OWN, Pretraining

#: Entries of the host's METHODS that are no methods.
_NO_METHODS = ("base", "linear")


def methods() -> List[str]:
    """Names of all methods, the host's and ours."""
    register()
    return [name for name in METHODS if name not in _NO_METHODS]


def check_pretraining(settings: Pretraining) -> None:
    """Method, backbone and optimizer exist in the installed host, and take the keys that they are given.

    Raises:
        UserError: the first that does not, with near misses.
    """
    one_of("method", settings.method, methods())
    one_of("backbone.name", settings.backbone.name, BACKBONES)
    if settings.method not in OWN:
        _check_kwargs(settings.method, settings.method_kwargs.model_dump())
    check_optimizer(settings.optimizer)


def _check_kwargs(method: str, given: Mapping[str, object]) -> None:
    known = method_keys(method)
    for key in given:
        if known and key not in known:
            raise UserError(
                f"method_kwargs.{key} is not a key of {method}{did_you_mean(str(key), known)}"
            )


def check_optimizer(optimizer: Union[Optimizer, FinetuneOptimizer]) -> None:
    """The optimizer takes what it is given besides, all of it together.

    Raises:
        UserError: the first key that it does not take, or what does not go together.
    """
    known, given = optimizer_kwargs(optimizer.name), optimizer.kwargs.model_dump()
    for key in given:
        if key not in known:
            raise UserError(
                f"optimizer.kwargs.{key} is not a key of {optimizer.name}{did_you_mean(str(key), known)}"
            )
    if "momentum" in known:  # the host's default
        given.setdefault("momentum", 0.9)
    try:
        _optimizers()[optimizer.name]([torch.nn.Parameter(torch.zeros(1))], lr=0.1, **given)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{optimizer.name} refuses optimizer.kwargs: {' '.join(str(error).split())}; change or leave them out."
        ) from error


def optimizer_kwargs(name: str) -> Set[str]:
    """The settings of an optimizer that have no key of their own."""
    own = {"self", "params", "lr", "weight_decay"}
    return set(inspect.signature(_optimizers()[name]).parameters) - own


def _optimizers() -> Dict[str, Any]:
    return {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "lars": LARS,
    }


def one_of(key: str, value: object, known: Iterable[str]) -> None:
    """A value that is among the known ones.

    Raises:
        UserError: it is not, with near misses.
    """
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown{did_you_mean(str(value), names)}")
