"""What entry points share: Hydra's command line, with one sentence and exit code 2 for a user's mistake."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, NoReturn, Optional

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.main import get_args_parser
from omegaconf.errors import OmegaConfBaseException

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.terminal import has_the_say, is_first_of_node


def guarded(
    main: Callable[[], object], default_dir: str, keys_of: str = "carp_plugin.settings.pretraining"
) -> None:
    """Runs a Hydra main; what the user did wrong is said in one sentence.

    Args:
        main: decorated with ``hydra.main``.
        default_dir: its ``config_path``, to suggest names from.
        keys_of: module whose ``known_keys()`` are suggested for a misspelt override.

    Exits with 2 after a mistake of the user's, with 130 after Ctrl-C, with 143 after SIGTERM.
    """
    # Hydra would print its own half of every error; with this set it raises them.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    silence_third_parties()
    try:
        with saying_mistakes():
            _config_is_named(default_dir)
            main()
    except MissingConfigException as error:
        _leave(f"error: {_missing_config(error, default_dir)}", 2)
    except OverrideParseException as error:
        _leave(f"error: the override {error.override!r} cannot be read; expected KEY=VALUE.", 2)
    except ConfigCompositionException as error:
        _leave(f"error: {_bad_override(error, keys_of)}", 2)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        _leave(f"error: {_unreadable(error)}", 2)
    except (HydraException, OmegaConfBaseException) as error:
        _leave(f"error: {' '.join(str(error).split())}", 2)


@contextmanager
def saying_mistakes() -> Iterator[None]:
    """Within this context a user's mistake and Ctrl-C are said in one sentence.

    Stands inside the function that Hydra calls as well, for Hydra would print its own line about the error first.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "interrupted."
        _leave(said if is_first_of_node() else "", getattr(interrupt, "code", 130))
    except UserError as error:
        _leave(f"error: {_own_sentence(error)}", 2)
    except OmegaConfBaseException as error:  # a value that refers to what is not there
        _leave(f"error: {' '.join(str(error).split())}", 2)


def silence_third_parties() -> None:
    """Hides notices of other packages that a user of ours can do nothing about."""
    for message in (
        ".*pin_memory.*",
        ".*does not have many workers.*",
        ".*pkg_resources is deprecated.*",
        ".*LeafSpec.* is deprecated.*",
        ".*your dataloader is not resumable.*",  # ours is, by the order that it takes images in
        ".*lr_scheduler.step.* before .*optimizer.step.*",
        "Grad strides do not match bucket view strides",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # greets from every process


def _leave(message: str, code: int) -> None:
    # What the user typed may hold line breaks and commands to the terminal.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    if shown and has_the_say():
        print(shown, file=sys.stderr)
    sys.exit(code)


def _own_sentence(error: UserError) -> str:
    """The sentence alone, where a data loader's worker has wrapped it in a trace."""
    return re.split(r"carp_plugin\.[\w.]+Error: ", str(error))[-1].strip()


def _option(*names: str) -> Optional[str]:
    """The value of a command-line option, given as ``--name value`` or ``--name=value``."""
    for i, argument in enumerate(sys.argv[1:], start=1):
        for name in names:
            if argument == name:
                return sys.argv[i + 1] if i + 1 < len(sys.argv) else None
            if argument.startswith(name + "="):
                return argument[len(name) + 1 :]
    return None


def _config_dir(default_dir: str) -> Path:
    """Where Hydra looks for the configuration: relative to the script, as it does itself."""
    named = _option("--config-path", "-cp", "--config-dir", "-cd") or default_dir
    return Path(sys.argv[0]).resolve().parent / named


def _refused_flags(message: str) -> NoReturn:
    raise UserError(
        f"{message}; settings are given as KEY=VALUE, flags are listed by --hydra-help."
    )


def _configs(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.glob("*.y*ml"))


def _config_is_named(default_dir: str) -> None:
    """A run without a configuration is a mistake, unless Hydra is asked for something else."""
    if any(
        argument.startswith(("--help", "-h", "--hydra-help", "--version", "--info"))
        for argument in sys.argv
    ):
        return
    parser = get_args_parser()
    parser.error = _refused_flags  # type: ignore[method-assign]
    parser.parse_args()
    folder = _config_dir(default_dir)
    if not folder.is_dir():
        raise UserError(f"the configuration folder {folder} does not exist; check --config-path.")
    if _option("--config-name", "-cn") is None:
        names = ", ".join(_configs(folder)) or "none here"
        raise UserError(
            f"no configuration is named; add --config-name NAME, one of {names} (in {folder})."
        )


def _missing_config(error: MissingConfigException, default_dir: str) -> str:
    name, folder = str(error.missing_cfg_file), _config_dir(default_dir)
    return f"there is no configuration {name!r} in {folder}{did_you_mean(name, _configs(folder))}"


def _unreadable(error: Exception) -> str:
    """Where a configuration file is no YAML."""
    name = _option("--config-name", "-cn")
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    file = mark.name if mark else f"{name} (or one that it takes in)"
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    reason = problem or " ".join(str(error).split())
    return f"the configuration {file} is no YAML{where}: {reason}; mend it there."


def _bad_override(error: ConfigCompositionException, keys_of: str) -> str:
    """Hydra's refusal of an override, with the near misses it does not give."""
    text = " ".join(str(error).split())
    found = re.search(r"Could not override '([^']+)'", text)
    if not found:
        return text
    key = found.group(1)
    known = importlib.import_module(keys_of).known_keys()  # not above: it needs solo-learn
    if "not in struct" in str(error.__cause__ or text) or "is not in struct" in text:
        if key in known:
            return f"{key} is not set in this configuration; add it as ++{key}=VALUE."
        return f"{key} is not a key of the configuration{did_you_mean(key, known)}"
    return f"{key} cannot be set: {' '.join(str(error.__cause__ or error).split())}"
