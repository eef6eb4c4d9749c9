"""Turns pydantic's errors into one sentence: what is wrong, what was expected, what to do."""

from __future__ import annotations

import re
from typing import Any, Callable, List, Mapping, Optional, Sequence, Type

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from carp_plugin.errors import did_you_mean
from carp_plugin.settings import kinds
from carp_plugin.settings.model import field_at, walk

#: Which of several mistakes is said: a misspelt key explains a missing one, and both what does not fit together.
_RANK = {"extra_forbidden": 0, "missing": 1, "rule": 3}
_OTHERS = 2

#: How to mend a key that is missing, where there is more to say.
_MISSING = {
    "pretrained_feature_extractor": "pretrained_feature_extractor is missing: add pretrained_feature_extractor=PATH, "
    "the checkpoint or the folder of a run of main_pretrain.py (its last line names it, "
    "trained_models/METHOD/RUN/….ckpt).",
}


def sentence(
    error: ValidationError,
    model: Type[BaseModel],
    values: Mapping[str, Any],
    within: str = "",
    spelt: Callable[[str], str] = str,
    items: bool = False,
) -> str:
    """The first mistake in one sentence.

    Args:
        error: of pydantic.
        model: that was built.
        values: from these.
        within: dotted place of the model's keys, with a dot at its end.
        spelt: a dotted key as the user gives it.
        items: say what is wrong with an item of a list, not with the list.
    """
    mistakes = error.errors(include_url=False)
    # a list whose items are wrong is said to be too short as well
    told = [one for one in mistakes if one["type"] != "too_short"] or mistakes
    found = min(told, key=lambda one: _RANK.get(one["type"], _OTHERS))
    path = _path(model, found["loc"])
    field = field_at(model, ".".join(map(str, path)))
    name = spelt(within + spelling(path))
    value = _at(values, path)
    if found["type"] == "rule":
        at = within + spelling(path)
        said = found["msg"].replace("{at}", f"{at}." if path else within)
        return said.replace("{node}", at.rstrip("."))
    if found["type"] == "extra_forbidden":
        return unknown(model, path, name, within)
    if found["type"] == "missing" and len(path) == len(found["loc"]):
        return _missing(path, name)
    if field is None:
        return f"{name}: {found['msg']}."
    if items and len(found["loc"]) > len(path) and isinstance(found["loc"][len(path)], int):
        kind, item = kinds.item(field.annotation), value[found["loc"][len(path)]]
        return f"{name} must be {kinds.described(kind)}, got {short(item)}."
    return _wrong(field, path, name, value)


def spelling(path: Sequence[Any]) -> str:
    """A place as it is written: ``augmentations[0].rrc``."""
    said = ""
    for part in path:
        said += f"[{part}]" if isinstance(part, int) else f".{part}" if said else str(part)
    return said


def _path(model: Optional[Type[BaseModel]], loc: Sequence[Any]) -> List[Any]:
    """The keys of a location; what pydantic adds for the branches of a union is left out."""
    path: List[Any] = []
    for part in loc:
        if model is None:
            break
        path.append(part)
        field = model.model_fields.get(str(part)) if not isinstance(part, int) else None
        if isinstance(part, int):
            continue
        if field is None:
            break
        model = kinds.node(field.annotation) or _items(field)
    return path


def _at(values: Any, path: Sequence[Any]) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def unknown(model: Type[BaseModel], path: Sequence[Any], name: str, within: str = "") -> str:
    """A key that is not known, with near misses: among those beside it, or at the top among all.

    Args:
        model: of the settings.
        path: the parts of the key.
        name: the key as the user gave it.
        within: dotted place of the model's keys, with a dot at its end.
    """
    node: Optional[Type[BaseModel]] = model
    if len(path) > 1:
        parent = field_at(model, ".".join(map(str, path[:-1])))
        node = None if parent is None else _items(parent) or kinds.node(parent.annotation)
    at_top = node is None or (node is model and not within)
    known = known_keys(model) if node is None or at_top else list(node.model_fields)
    word = name if node is None else str(path[-1])
    owner = getattr(node, "owner", "the configuration")
    return f"{name} is not a key of {owner}{did_you_mean(word, known)}"


def _missing(path: Sequence[Any], name: str) -> str:
    if name in _MISSING:
        return _MISSING[name]
    if any(isinstance(part, int) for part in path):
        return f"{name} is missing; see carp_plugin/configs/views for whole pipelines."
    return f"{name} is missing from the configuration; add it to the yaml file or as {name}=VALUE."


def _wrong(field: FieldInfo, path: Sequence[Any], name: str, value: Any) -> str:
    words = kinds.choices(field.annotation)
    below = kinds.node(field.annotation)
    if isinstance(path[-1], int):
        items = _items(field)
        return f"{name} must hold keys ({', '.join(items.model_fields)}), got {short(value)}."  # type: ignore[union-attr]
    if words and isinstance(value, str) and value:
        return f"{name}={value} is unknown{did_you_mean(value, words)}"
    if below is not None:
        return f"{name} must hold keys ({', '.join(below.model_fields)}), got {short(value)}."
    if _items(field):
        return f"{name} must be a list of pipelines; see carp_plugin/configs/views, of which views=NAME takes one."
    return f"{name} must be {kinds.words_of(field)}, got {short(value)}{_hint(value)}."


def _items(field: FieldInfo) -> Optional[Type[BaseModel]]:
    """The model of a list's items; None where they are plain values, or where it is no list."""
    items = kinds.item(field.annotation)
    return None if items is None else kinds.node(items)


def short(value: Any) -> str:
    """A part of a value, for the middle of a sentence."""
    given = repr(value)
    return given if len(given) <= 80 else f"{given[:80]}…"


def _hint(value: Any) -> str:
    """YAML 1.1 reads 1e-6 as a word where a dot is missing; Hydra does not, other tools do."""
    number = isinstance(value, str) and re.match(r"[-+]?\d", value)
    return " (a word, not a number)" if number else ""


def known_keys(model: Type[BaseModel]) -> List[str]:
    """Every dotted key of a model."""
    return [dotted for dotted, _, _ in walk(model)]
