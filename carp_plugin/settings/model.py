"""The base of all settings: frozen, no key that is not known, and null for whatever has a default."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Iterator, Mapping, Optional, Tuple, Type, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from carp_plugin.settings import kinds

Model = TypeVar("Model", bound="Settings")


class Settings(BaseModel):
    """Keys of a node of the configuration. What follows from them is not here: see ``training/plan.py``."""

    #: Whose keys these are, for the sentence about one that is not known.
    owner: ClassVar[str] = "the configuration"

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        """Null where it is no value of the key's: as if the key were left out."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in fields or kinds.optional(fields[key].annotation)
        }


class Given(Settings):
    """Keys of somebody else's, who has defaults of his own: only what was given is handed on."""

    @model_serializer(mode="plain")
    def _given(self) -> Dict[str, Any]:
        names = [*type(self).model_fields, *(self.model_extra or {})]
        values = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        return {name: value for name, value in values.items() if value is not None}


def key(default: Any, meaning: str, *, identity: bool = True, unit: str = "", **bounds: Any) -> Any:
    """A key of the settings.

    Args:
        default: ``...`` where it must be given.
        meaning: one line.
        identity: whether two runs that differ in it are two; resume compares those keys.
        unit: of the value.
        bounds: ``ge``, ``gt``, ``le``, ``lt``, ``min_length``.
    """
    extra: Dict[str, Any] = {"identity": identity}
    if unit:
        extra["unit"] = unit
    return Field(default, description=meaning, json_schema_extra=extra, **bounds)


def rule(sentence: str) -> PydanticCustomError:
    """A rule between keys that is broken.

    Args:
        sentence: what is said; ``{at}`` is the node's place with a dot behind it, empty at the top.
    """
    # pydantic fills braces in from a context; the sentence goes there whole
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def extra_of(field: FieldInfo) -> Dict[str, Any]:
    """Identity and unit of a key."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def walk(
    model: Type[BaseModel], path: str = "", identity: bool = True
) -> Iterator[Tuple[str, FieldInfo, bool]]:
    """Every dotted key of a model, nodes before what they hold: (key, field, whether it belongs to the identity).

    The keys of a list's items stand under ``0``.
    """
    for name, field in model.model_fields.items():
        dotted = f"{path}{name}"
        own = identity and extra_of(field).get("identity", True)
        yield dotted, field, own
        below, items = kinds.node(field.annotation), kinds.item(field.annotation)
        if below is not None:
            yield from walk(below, f"{dotted}.", own)
        elif items is not None and kinds.node(items) is not None:
            yield from walk(kinds.node(items), f"{dotted}.0.", own)  # type: ignore[arg-type]


def free_keys(model: Type[BaseModel]) -> Tuple[str, ...]:
    """Dotted keys, nodes among them, in which two runs may differ and still be one."""
    return tuple(dotted for dotted, _, own in walk(model) if not own)


def defaults_of(model: Type[BaseModel]) -> Dict[str, Any]:
    """Dotted key -> its default, of every leaf that has one."""
    found = {}
    for dotted, field, _ in walk(model):
        if kinds.node(field.annotation) is None and not field.is_required():
            found[dotted] = field.get_default(call_default_factory=True)
    return found


def field_at(model: Type[BaseModel], dotted: str) -> Optional[FieldInfo]:
    """The field of a dotted key, list indexes among its parts; None where there is none."""
    head, _, rest = dotted.partition(".")
    field = model.model_fields.get(head)
    if field is None or not rest:
        return field
    below, items = kinds.node(field.annotation), kinds.item(field.annotation)
    if items is not None:
        below, (_, _, rest) = kinds.node(items), rest.partition(".")
        if not rest:
            return field
    return None if below is None else field_at(below, rest)
