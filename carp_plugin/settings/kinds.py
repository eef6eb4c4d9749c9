"""Kinds of values that a key may have, and the words for each: the same in a sentence, in a table and in a schema.

Kinds are strict, for YAML and the command line have types of their own: ``"8"`` is no number and ``True`` is not 1.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Dict, Literal, Optional, Sequence, Union, get_args, get_origin

import annotated_types as at
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    Strict,
    WithJsonSchema,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

LARGEST = 1e30  # of a number that is to be computed with in float32
LARGEST_WHOLE = 2**62
PIXELS = 4096  # a larger view does not fit memory, and would be found out there


class Words(str):
    """What a value must be, in words, where the type alone does not tell: ``key must be WORDS, got …``."""


class IsPath:
    """Marks a path: what a user types for it is none of Hydra's grammar."""


def refused(kind: str = "kind") -> PydanticCustomError:
    """A value that is not of its kind; the sentence is made from the key's words."""
    return PydanticCustomError("kind", kind)  # type: ignore[arg-type]


def _text(value: str) -> str:
    if "\0" in value:
        raise refused()
    return value


def is_file_name(value: str) -> bool:
    """Whether a file can be named after a text."""
    fits = re.fullmatch(r"[^/\\]{1,100}", value) and value.isprintable()
    return bool(fits) and value not in (".", "..")


def _file_name(value: str) -> str:
    if not is_file_name(value):
        raise refused()
    return value


def expanded(path: str) -> str:
    """A path with ``~``, ``$NAME`` and ``${NAME}`` of the environment in place; others stay as they are."""
    return os.path.expanduser(os.path.expandvars(path))


def _matching(pattern: str) -> Any:
    def check(value: Any) -> Any:
        if not re.fullmatch(pattern, str(value)):
            raise refused()
        return value

    return check


def _devices(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    words = isinstance(value, str) and not value.isdigit()
    number = isinstance(value, (int, str)) and not isinstance(value, bool)
    if not words and not (number and re.fullmatch(r"-1|\d{1,4}", str(value))):
        raise refused()
    return value


def _off(value: Any) -> Any:
    if value != 0 or isinstance(value, bool):
        raise refused()
    return value


Switch = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]  # its key has both bounds
Number = Annotated[float, Strict(), AllowInfNan(False)]  # its key has both bounds
Signed = Annotated[float, Strict(), at.Ge(-LARGEST), at.Le(LARGEST), AllowInfNan(False)]
Text = Annotated[
    str,
    Strict(),
    at.MinLen(1),
    AfterValidator(_text),
    Words("a text (in quotes, if it looks like a number)"),
]
FileName = Annotated[
    str,
    Strict(),
    AfterValidator(_file_name),
    Words("a text that a file can be named after: at most 100 letters, and no slash among them"),
]
PathText = Annotated[
    str,
    Strict(),
    at.MinLen(1),
    AfterValidator(_text),
    AfterValidator(expanded),
    IsPath(),
    Words("a path"),
]

Count = Annotated[int, Strict(), at.Ge(1), at.Le(LARGEST_WHOLE)]
Index = Annotated[int, Strict(), at.Ge(0), at.Le(LARGEST_WHOLE)]
Pixels = Annotated[int, Strict(), at.Ge(1), at.Le(PIXELS)]
Seed = Annotated[int, Strict(), at.Ge(0), at.Le(2**32 - 1)]
NotNegative = Annotated[float, Strict(), at.Ge(0), at.Le(LARGEST), AllowInfNan(False)]
Positive = Annotated[float, Strict(), at.Gt(0), at.Le(LARGEST), AllowInfNan(False)]
Probability = Annotated[float, Strict(), at.Ge(0), at.Le(1)]
Share = Annotated[float, Strict(), at.Gt(0), at.Le(1)]
BelowOne = Annotated[float, Strict(), at.Ge(0), at.Lt(1)]
Part = Annotated[float, Strict(), at.Gt(0), at.Lt(1)]

#: Of batches: a share of them, or how many.
Batches = Union[Count, Share]
BatchesOrNone = Union[Index, Probability]
Fraction = Union[Annotated[Literal[-1], Words("-1 for all")], Part]
Steps = Union[Annotated[Literal[-1], Words("-1 for no limit")], Count]
Duration = Annotated[
    str,
    BeforeValidator(_matching(r"\d+:\d\d:\d\d:\d\d")),
    Words("a time as DD:HH:MM:SS"),
]
Devices = Annotated[
    Any,
    BeforeValidator(_devices),
    WithJsonSchema({"type": ["integer", "string", "array"]}),
    Words("a number of devices, a list of their indexes, or auto"),
]
Off = Annotated[
    Any,
    BeforeValidator(_off),
    WithJsonSchema({"const": 0}),
    Words(
        "0, for images come in an order of the run's own; limit_train_batches takes a part of them"
    ),
]
Free = Dict[str, Any]


def optional(annotation: Any) -> bool:
    """Whether null is a value of a kind."""
    return type(None) in get_args(annotation)


def inner(annotation: Any) -> Any:
    """A kind without its null, and without what Annotated adds; a Union of several stays one."""
    if get_origin(annotation) is Annotated:
        return inner(get_args(annotation)[0])
    if get_origin(annotation) is Union:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return inner(kinds[0]) if len(kinds) == 1 else Union[tuple(kinds)]
    return annotation


def node(annotation: Any) -> Optional[type[BaseModel]]:
    """The model whose keys a key holds; None for a leaf."""
    kind = inner(annotation)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def item(annotation: Any) -> Any:
    """The kind of a list's items; None where it is no list."""
    kind = inner(annotation)
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def choices(annotation: Any) -> Sequence[str]:
    """The words that a key may have; empty where it may have others."""
    kind = inner(annotation)
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return words if all(isinstance(word, str) for word in words) else ()


def is_path(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    """Whether a key is a path."""
    if any(isinstance(mark, IsPath) for mark in metadata):
        return True
    if get_origin(annotation) is Annotated:
        return is_path(get_args(annotation)[0], get_args(annotation)[1:])
    return any(is_path(kind) for kind in get_args(annotation) if get_origin(annotation) is Union)


def words_of(field: FieldInfo) -> str:
    """What a key must be, to stand behind "must be"."""
    return described(field.annotation, field.metadata)


def described(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A kind in words.

    Args:
        annotation: of a field.
        metadata: what stands beside it: bounds, :class:`Words`.
    """
    said = [mark for mark in metadata if isinstance(mark, Words)]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return described(parts[0], [*metadata, *parts[1:]])
    if origin is Union:
        kinds = [described(kind, metadata) for kind in parts if kind is not type(None)]
        return " or ".join([*dict.fromkeys(kinds), *(["null"] if optional(annotation) else [])])
    if said:
        return str(said[-1])
    if origin is Literal:
        return parts[0] if len(parts) == 1 else "one of " + ", ".join(map(str, parts))
    if origin is tuple:
        length = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {length}items, each {described(parts[0])}"
    if node(annotation) or origin is dict or annotation is Any:
        return "a node of keys and values"
    if annotation is bool:
        return "True or False"
    if annotation in (int, float):
        return _bounded("a whole number" if annotation is int else "a number", metadata)
    return "a text"


def _bounded(what: str, metadata: Sequence[Any]) -> str:
    """The tightest of several bounds, in words."""
    lows = [(getattr(m, sign), sign) for m in metadata for sign in ("ge", "gt") if _has(m, sign)]
    highs = [(getattr(m, sign), sign) for m in metadata for sign in ("le", "lt") if _has(m, sign)]
    low, above = max(lows, default=(-LARGEST, ""))
    high, below = min(highs, default=(LARGEST, ""))
    if low == -LARGEST:
        return what if high in (LARGEST, LARGEST_WHOLE) else f"{what} of at most {high}"
    if high in (LARGEST, LARGEST_WHOLE):
        return f"{what} above {low}" if above == "gt" else f"{what} of at least {low}"
    ends = [str(low)] * (above == "gt") + [str(high)] * (below == "lt")
    without = f", not {' and not '.join(ends)}" if ends else ""
    return f"{what} between {low} and {high}{without}"


def _has(mark: Any, sign: str) -> bool:
    return isinstance(mark, {"ge": at.Ge, "gt": at.Gt, "le": at.Le, "lt": at.Lt}[sign])


def shown(value: Any) -> str:
    """A value as a table and YAML write it."""
    if value is None:
        return "null"
    if isinstance(value, BaseModel):
        return "-"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)
