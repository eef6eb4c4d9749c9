"""From what a user wrote to settings: interpolations resolved once, then every key checked."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Mapping, Type

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from carp_plugin.errors import UserError
from carp_plugin.settings.mistakes import sentence
from carp_plugin.settings.model import Model

#: What YAML writes where a value must be given later.
MISSING = "???"


def read(model: Type[Model], values: Mapping[Any, Any], within: str = "") -> Model:
    """Settings from nested keys.

    Args:
        model: of the settings.
        values: as YAML gives them; interpolations are resolved already.
        within: dotted place of these keys, with a dot at its end, for sentences.

    Raises:
        UserError: the first mistake.
    """
    given = _tidy(values)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(sentence(error, model, given, within)) from None


def plain(cfg: DictConfig) -> Dict[str, Any]:
    """A composed configuration as plain dicts, lists and values, interpolations resolved.

    ``${NAME}`` of the environment, which a shell would have put in, is put in where no key has that name.

    Raises:
        omegaconf.errors.OmegaConfBaseException: an interpolation of something that is not there.
    """
    content = OmegaConf.to_container(cfg, resolve=False)
    environment = OmegaConf.create(_with_environment(content, content))
    resolved = OmegaConf.to_container(environment, resolve=True)
    if not isinstance(resolved, dict):
        raise UserError("the configuration must hold keys and values, got a list.")
    return {str(key): value for key, value in resolved.items()}


def _with_environment(value: Any, top: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_environment(below, top) for key, below in value.items()}
    if isinstance(value, list):
        return [_with_environment(below, top) for below in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def variable(found: re.Match) -> str:
        name = found.group(1)
        return os.environ[name] if name in os.environ and name not in top else found.group(0)

    return re.sub(r"\$\{([A-Za-z_]\w*)\}", variable, value)


def _tidy(value: Any) -> Any:
    """Keys as text, what is still missing left out, and the word None as null, which it is to the host."""
    if isinstance(value, Mapping):
        return {str(key): _tidy(below) for key, below in value.items() if below != MISSING}
    if isinstance(value, (list, tuple)):
        items: List[Any] = [_tidy(below) for below in value]
        return items
    return None if value == "None" else value
