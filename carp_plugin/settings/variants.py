"""The rows of a comparison: a method by its name, or a label, a method and what is the row's own."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from carp_plugin.errors import UserError
from carp_plugin.settings.kinds import Free, Signed, Text, is_file_name
from carp_plugin.settings.model import Settings, key
from carp_plugin.settings.reading import read

#: Keys of pretraining that a comparison gives each run.
_DECIDED = ("name", "method", "seed", "checkpoint", "auto_resume")


class Variant(NamedTuple):
    """A row.

    Attributes:
        label: how tables, pictures and files call it.
        method: a key of the host's METHODS.
        own: nested keys of pretraining that are its own, on top of those of its method.
        paper: the number that a paper has for it, None where it has none.
    """

    label: str
    method: str
    own: Mapping[str, Any] = {}
    paper: Optional[float] = None


class VariantKeys(Settings):
    """What the configuration says of a variant."""

    owner = "a variant"
    method: Text = key(..., "of the host or carp")
    settings: Free = key({}, "keys of pretraining that are its own")
    paper: Optional[Signed] = key(None, "the number that a paper has for it")


class Paper(Settings):
    """What a paper says of the same variants, to stand beside our numbers."""

    source: Text = key(..., "the place, as in 'table 3'")
    measures: Optional[Text] = key(None, "what its numbers are: metric, data, epochs")
    claim: Text = key(..., "what the place is quoted for, in one sentence")


def rows(methods: Sequence[str], variants: Mapping[str, Mapping[str, Any]]) -> List[Variant]:
    """The rows of a comparison, methods first.

    Args:
        methods: rows whose label is the method.
        variants: label -> keys of :class:`VariantKeys`.

    Raises:
        UserError: there is no row, a label no file can be named after or that two rows have, or a slip in a variant.
    """
    found = [Variant(method, method) for method in methods]
    for label, given in variants.items():
        if not is_file_name(label):
            raise UserError(
                f"variants: a label must be a text that a file can be named after, got {label!r}; call it otherwise."
            )
        if label in methods:
            raise UserError(
                f"variants.{label} has the name of one of methods={list(methods)}; call it otherwise."
            )
        keys = read(VariantKeys, given, within=f"variants.{label}.")
        for name in _DECIDED:
            if name in keys.settings:
                raise UserError(
                    f"variants.{label}.settings.{name} is the comparison's to decide; leave it out."
                )
        found.append(Variant(label, keys.method, nested(keys.settings), keys.paper))
    if not found:
        raise UserError("methods and variants are both empty; give methods=[carp,byol].")
    return found


def nested(keys: Mapping[str, Any]) -> Dict[str, Any]:
    """Keys with dots in them as nodes within nodes.

    Raises:
        UserError: a key lies below one that holds a value.
    """
    result: Dict[str, Any] = {}
    for dotted, value in keys.items():
        *parents, leaf = str(dotted).split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{dotted} is not a key of the configuration.")
        if isinstance(value, Mapping):
            below = node.get(leaf)
            node[leaf] = {**(below if isinstance(below, dict) else {}), **nested(value)}
        else:
            node[leaf] = value
    return result
