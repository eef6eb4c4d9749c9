"""From what a user types to what Hydra reads: known keys are set by ``key=value``, and a path is just a path.

Hydra's grammar refuses ``=``, accents, brackets, ``~``, ``#`` and commas in bare values, the shell eats the quotes that
would help, and a key that no file sets wants ``++``. The user need know none of that: the keys are known here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, NoReturn, Optional, Sequence, Type

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from hydra.main import get_args_parser
from hydra.types import RunMode
from pydantic import BaseModel

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.settings import kinds
from carp_plugin.settings.mistakes import unknown
from carp_plugin.settings.model import field_at

#: Nodes whose keys somebody else knows.
_FREE = ("method_kwargs", "backbone.kwargs", "settings", "variants", "trials", "linear")

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|)(?P<key>[\w.\-]+)=(?P<value>.*)", re.DOTALL)
_BARE = ("", "null", "None", "???")


class Typed(NamedTuple):
    """A command line, read.

    Attributes:
        folder: of the configuration; None where Hydra is to find it (``pkg://``).
        name: of the configuration; None where none was named.
        flags: for Hydra.
        overrides: in Hydra's grammar.
    """

    folder: Optional[Path]
    name: Optional[str]
    flags: List[str]
    overrides: List[str]

    def job_of_several(self) -> Optional[List[str]]:
        """The arguments of the job that is running alone, where it is one of several (``-m``); None where it is not."""
        running = HydraConfig.get()
        if running.mode != RunMode.MULTIRUN:
            return None
        flags = [flag for flag in self.flags if flag not in ("-m", "--multirun")]
        return [*flags, *running.overrides.task]


def read_arguments(
    arguments: Sequence[str], model: Type[BaseModel], default: Path, beside: Path
) -> Typed:
    """Reads a command line.

    Args:
        arguments: as the shell gave them, without the program's name.
        model: of the settings, which knows the keys.
        default: folder of configurations where none is named.
        beside: folder of the script, which a relative ``--config-path`` may be meant from.

    Raises:
        UserError: flags that are none, an unknown key, a folder or a configuration that is not there.
    """
    parser = get_args_parser()
    parser.error = _refused_flags  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(list(arguments))
    flags = list(arguments)
    for override in given.overrides:
        flags.remove(override)
    flags = _without(flags, "--config-path", "-cp", "--config-name", "-cn")
    folder, name = _configuration(given.config_path, given.config_name, default, beside)
    if folder is not None:
        flags += ["--config-path", str(folder)]
    elif given.config_path:
        flags += ["--config-path", given.config_path]
    if name is not None:
        flags += ["--config-name", name]
    several = given.multirun or "hydra.mode=MULTIRUN" in given.overrides
    groups = _groups(folder)
    overrides = [hydra_override(text, model, several, groups) for text in given.overrides]
    return Typed(folder, name, flags, overrides)


def _refused_flags(message: str) -> NoReturn:
    raise UserError(
        f"{message}; settings are given as KEY=VALUE, flags are listed by --help and --hydra-help."
    )


def _without(flags: Sequence[str], *names: str) -> List[str]:
    """Flags but for those of these names and their values."""
    kept, skip = [], False
    for flag in flags:
        if skip:
            skip = False
        elif flag in names:
            skip = True
        elif not flag.startswith(tuple(f"{name}=" for name in names)):
            kept.append(flag)
    return kept


def _configuration(
    path: Optional[str], name: Optional[str], default: Path, beside: Path
) -> tuple[Optional[Path], Optional[str]]:
    """Folder and name of the configuration; a name may have folders before it."""
    if path and "://" in path:
        return None, name
    folder = default
    if path:
        # as Hydra: from the script's folder; and from where the user is
        folder = beside / path if (beside / path).is_dir() else Path.cwd() / path
    if not folder.is_dir():
        raise UserError(f"the configuration folder {folder} does not exist; check --config-path.")
    if not name:
        return folder.resolve(), None
    inside, _, last = name.rpartition("/")
    if inside and (folder / inside).is_dir():
        folder = folder / inside
    else:
        last = name
    if not any((folder / f"{last}{ending}").is_file() for ending in ("", ".yaml", ".yml")):
        raise UserError(
            f"there is no configuration {last!r} in {folder}{did_you_mean(last, configs(folder))}"
        )
    return folder.resolve(), last


def configs(folder: Path) -> List[str]:
    """Names of the configurations in a folder."""
    return sorted(path.name for path in folder.glob("*.y*ml"))


def _groups(folder: Optional[Path]) -> Callable[[str], bool]:
    """Whether a key is a group of configurations: a folder of ours, or beside the configuration."""
    ours = Path(__file__).resolve().parents[1] / "configs"
    roots = [ours] if folder is None else [ours, folder]

    def is_group(key: str) -> bool:
        return any((root / key).is_dir() for root in roots)

    return is_group


def hydra_override(
    text: str, model: Type[BaseModel], several: bool, is_group: Callable[[str], bool]
) -> str:
    """What a user typed as Hydra reads it.

    Args:
        text: ``key=value``, with or without Hydra's signs before and quotes behind.
        model: of the settings, which knows the keys.
        several: whether commas separate the values of several jobs (``-m``).
        is_group: whether a key is a group of configurations.

    Raises:
        UserError: a key that is not known.
    """
    found = _OVERRIDE.fullmatch(text)
    if found is None:
        return _other(text, model)
    sign, key, value = found["sign"], found["key"], found["value"]
    if key.split(".")[0] == "hydra" or is_group(key):
        return text
    field = field_at(model, key)
    if field is None and not _free(model, key):
        raise UserError(unknown(model, key.split("."), key))
    path = field is not None and kinds.is_path(field.annotation, field.metadata)
    if path:
        value = _path(value, several)
    elif field is not None and field.annotation is not None:
        value = _other_value(key, value, several, kinds.item(field.annotation) is not None)
    elif not _parses(f"k={value}"):
        value = quoted(value)
    # The entries of a list can only be set; any other key is set, or added where no file has it.
    index = re.fullmatch(r"\w+\.\d+", key)
    return f"{sign if index else '++'}{key}={value}"


def _other(text: str, model: Type[BaseModel]) -> str:
    """Deletions and group choices are Hydra's; what is neither is no setting."""
    deleted = re.fullmatch(r"~([\w.\-]+)(=.*)?", text, re.DOTALL)
    if deleted or re.match(r"[+~]*[\w.\-/]*[@/]", text):
        return text
    if "=" in text and re.match(r"[+~]*hydra[./]", text):
        return text
    raise UserError(f"the override {text!r} cannot be read; expected KEY=VALUE.")


def _free(model: Type[BaseModel], key: str) -> bool:
    """Whether the key lies below a node whose keys somebody else knows."""
    return any(key.startswith(f"{node}.") and field_at(model, node) for node in _FREE)


def _path(value: str, several: bool) -> str:
    if value in _BARE[1:]:
        return value
    if several and "," in value and not _is_quoted(value):
        return ",".join(map(quoted, value.split(",")))
    return quoted(_unquoted(value))


def _other_value(key: str, value: str, several: bool, is_list: bool) -> str:
    override = _parsed(f"{key}={value}")
    if override is None:
        return value if value in _BARE else quoted(value)
    if not override.is_sweep_override() or several:
        return value
    # 1,2,3 of a key that has a list; of any other it is no value, and the key's sentence says so
    return f"[{value}]" if is_list and _parses(f"{key}=[{value}]") else quoted(value)


def _parsed(text: str) -> Any:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _parses(text: str) -> bool:
    return _parsed(text) is not None


def _is_quoted(value: str) -> bool:
    return _unquoted(value) != value


def _unquoted(value: str) -> str:
    """What stands between quotes of Hydra's; as it is where there are none, or where they are part of a name."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    try:
        read = OverridesParser.create().parse_rule(value, "primitive")
    except HydraException:
        return value
    return read.text if isinstance(read, QuotedString) else value


def quoted(text: str) -> str:
    """A text as Hydra's grammar quotes it."""
    # a backslash means something to it before a quote only
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"
