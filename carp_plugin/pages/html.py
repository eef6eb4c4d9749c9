"""What every page is made of: HTML files that need nothing else, for a window, a telephone and paper."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from carp_plugin.errors import UserError
from carp_plugin.evaluation.drawing import Picture, svg


class Figure(NamedTuple):
    """A picture on a page.

    Attributes:
        svg: the element.
        caption: said under it, or empty.
    """

    svg: Markup
    caption: str


class Section(NamedTuple):
    """A section that a module of its own adds to a page; what is empty is left out.

    Attributes:
        id: of the element, one word, another one than every other section's.
        title: over it, and in the navigation.
        note: a sentence or several under the title.
        header: of a table.
        lines: its rows; a cell is a list of lines, of which the first is large.
        figures: pictures below the table; the names of :class:`Picture` differ on a page.
    """

    id: str
    title: str
    note: str = ""
    header: Sequence[str] = ()
    lines: Sequence[Sequence[Sequence[str]]] = ()
    figures: Sequence[Figure] = ()


def figure(picture: Picture, caption: str = "") -> Figure:
    """A picture as it stands on a page."""
    # svg() escapes every text of ours that it takes in; nothing else in it comes from the results.
    return Figure(Markup(svg(picture)), caption)


def rendered(template: str, package: str, **values: Any) -> str:
    """A filled template; the same values give the same text.

    Args:
        template: file name.
        package: that it lies in; the frame lies in this one.
        values: of its names. Text is escaped, unless it is Markup.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("carp_plugin.pages", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_whole(text: str, path: Path) -> Path:
    """Writes a page, whole or not at all; makes its folder where it is missing.

    Raises:
        UserError: it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose another folder, or make room."
        ) from error
    return path


def known(facts: Sequence[Tuple[str, Any]]) -> List[Tuple[str, str]]:
    """Names and values as text; what is not known is left out."""
    return [(name, str(value)) for name, value in facts if value not in (None, "", {})]


def pairs(mapping: Optional[Mapping[str, Any]]) -> List[Tuple[str, str]]:
    """Keys and values as text, without those that are None."""
    return [(str(key), str(value)) for key, value in (mapping or {}).items() if value is not None]


def listed(mapping: Optional[Mapping[str, Any]]) -> str:
    """Keys and values in one line."""
    return ", ".join(f"{key} {value}" for key, value in pairs(mapping))


def host_line(host: Optional[Mapping[str, Any]]) -> str:
    """solo-learn and its release first, then what else is known of it."""
    rest = {key: value for key, value in (host or {}).items() if key not in ("name", "version")}
    named = " ".join(str(host[key]) for key in ("name", "version") if host and host.get(key))
    return ", ".join(filter(None, [named, listed(rest)]))


def yaml_of(tree: Any) -> str:
    """Nested values as YAML; nothing of nothing."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) if tree else ""
