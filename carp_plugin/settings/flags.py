"""Flags of a command, made from its settings: each flag stands once, with its type, default and meaning."""

from __future__ import annotations

import argparse
import re
from typing import Any, Dict, NoReturn, Sequence, Type

from pydantic import ValidationError

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.settings import kinds
from carp_plugin.settings.mistakes import sentence
from carp_plugin.settings.model import Model, Settings, walk

#: Keys whose flag has another name: a model has a method called json.
_FLAGS = {"json_file": "json"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a user's mistake like any other: one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print.

        Raises:
            UserError: always; near misses of a flag that is not known.
        """
        unknown = re.match(r"unrecognized arguments: (--[\w.-]+)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = did_you_mean(unknown.group(1), flags).partition("; choose from")[0]
            raise UserError(
                f"{unknown.group(1)} is not a flag of {self.prog}{near or '; see --help.'}"
            )
        raise UserError(f"{message.rstrip('.')}; see {self.prog} --help.")


def flag(key: str) -> str:
    """The flag of a key."""
    return f"--{_FLAGS.get(key, key)}"


def parser(model: Type[Settings], prog: str, about: str) -> Parser:
    """A parser of the flags of a model.

    Args:
        model: of the settings.
        prog: name of the command.
        about: what it does.
    """
    made = Parser(prog=prog, allow_abbrev=False, description=about)
    for key, field, _ in walk(model):
        if kinds.node(field.annotation) is not None:
            continue
        items = kinds.item(field.annotation)
        one = field.annotation if items is None else items
        default = None if field.is_required() else field.get_default()
        words = field.description or ""
        if default is not None:
            words += f" ({kinds.shown(default).strip('[]').replace(',', '')})"
        if kinds.inner(one) is bool:
            made.add_argument(
                flag(key),
                dest=key,
                default=argparse.SUPPRESS,
                action=argparse.BooleanOptionalAction,
                help=words.replace("%", "%%"),
            )
            continue
        made.add_argument(
            flag(key),
            dest=key,
            default=argparse.SUPPRESS,
            required=field.is_required(),
            nargs=None if items is None else "+",
            type={int: int, float: float}.get(kinds.inner(one), str),
            choices=kinds.choices(one) or None,
            metavar=None if kinds.choices(one) else re.split(r"[._]", key)[-1].upper(),
            help=words.replace("%", "%%"),
        )
    return made


def read_flags(model: Type[Model], arguments: Sequence[str], prog: str, about: str) -> Model:
    """Settings from flags.

    Args:
        model: of the settings.
        arguments: of the command line, without the program's name.
        prog: name of the command.
        about: what it does.

    Raises:
        UserError: the first mistake, in the words of the flags.
    """
    typed = vars(parser(model, prog, about).parse_args(list(arguments)))
    given: Dict[str, Any] = {}
    for key, value in typed.items():
        *nodes, leaf = key.split(".")
        node = given
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        said = sentence(error, model, given, spelt=flag, items=True)
        # null is no value that a flag can be given; it is left out
        raise UserError(said.replace(" or null, got", ", got")) from None
