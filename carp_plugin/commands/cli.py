"""What the commands share: a command line read, and one sentence with exit code 2 for a user's mistake.

Nothing of torch or of solo-learn is imported before a command line has been found good.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Type

from carp_plugin.errors import LonelyError, UserError, worker_ended
from carp_plugin.terminal import has_the_say, is_first_of_node, lasting_streams


@contextmanager
def saying_mistakes() -> Iterator[None]:
    """Within this context a user's mistake and Ctrl-C are said in one sentence.

    Stands inside the function that Hydra calls as well, for Hydra would print its own line about the error first.
    Leaves with 2 after a mistake of the user's, with 130 after Ctrl-C, with 128 and the number of another signal.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "interrupted."
        _leave(said if is_first_of_node() else "", getattr(interrupt, "code", 130))
    except Said:
        _leave("", 2)
    except LonelyError as error:
        _leave(f"error: {error}", 2, whoever=True)
    except UserError as error:
        _leave(f"error: {_own_sentence(error)}", 2)
    except Exception as error:
        # here: what it knows of is imported where one of them has failed
        from carp_plugin.settings.refusals import refusal

        ended = worker_ended(error)
        reason = (
            refusal(error)
            if ended is None
            else f"{ended}; data.num_workers=0, or the flag --num_workers 0, needs none."
        )
        if reason is None:
            raise
        _leave(f"error: {reason}", 2)


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


class Said(UserError):
    """A mistake that has been said already."""


def _say(message: str, whoever: bool = False) -> None:
    # What the user typed may hold line breaks and commands to the terminal.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    if shown and (whoever or has_the_say()):
        print(shown, file=sys.stderr)


def _leave(message: str, code: int, whoever: bool = False) -> None:
    _say(message, whoever)
    sys.exit(code)


def _overrides(job: Sequence[str]) -> str:
    """What tells a job from the others of a sweep: its settings, without the flags."""
    return " ".join(word.lstrip("+") for word in job if "=" in word and not word.startswith("-"))


def _own_sentence(error: UserError) -> str:
    """The sentence alone, where a data loader's worker has wrapped it in a trace."""
    return re.split(r"carp_plugin\.[\w.]+Error: ", str(error))[-1].strip()


@dataclass(frozen=True)
class Command:
    """A command that a configuration tells what to do.

    Attributes:
        script: of a checkout.
        name: of an installation.
        about: what it does, in a sentence.
        recipes: folder of its recipes below ``scripts/``.
        example: how it is called.
        model: ``module:class`` of the settings, which knows every key.
        read: ``module:function``, nested keys to settings.
        run: ``module:function`` of the settings.
    """

    script: str
    name: str
    about: str
    recipes: str
    example: str
    model: str
    read: str
    run: str

    def main(self, arguments: Optional[Sequence[str]] = None) -> None:
        """Does what the command line says.

        Args:
            arguments: without the program's name; None takes those of this process.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        silence_third_parties()
        with lasting_streams(), saying_mistakes():
            if any(flag in ("-h", "--help") for flag in given):
                print(self.help())
            elif given[:1] == ["--keys"]:
                self._say_keys(given[1:])
            else:
                self._compose_and_run(given)

    def _compose_and_run(self, given: List[str]) -> None:
        from carp_plugin.settings.command_line import configs, read_arguments
        from carp_plugin.settings.recipes import folder

        beside = Path(sys.argv[0]).resolve().parent
        typed = read_arguments(given, self.settings(), folder(self.recipes), beside)
        hydra_itself = any(flag.startswith(("--hydra-help", "--version")) for flag in given)
        if typed.name is None and not hydra_itself:
            names = ", ".join(configs(typed.folder)) if typed.folder else ""
            raise UserError(
                f"no configuration is named; add --config-name NAME, one of {names or 'none here'} (in {typed.folder})."
            )
        before = sys.argv
        sys.argv = [before[0], *typed.flags, *typed.overrides]

        def task(cfg: Any) -> Any:
            # Lightning starts the other processes with what the user typed, of several jobs with this one's part of it.
            job = typed.job_of_several()
            sys.argv = before if job is None else [before[0], *job]
            if job is None:
                with saying_mistakes():
                    return self.do(cfg)
            try:
                return self.do(cfg)
            except UserError as error:  # said at once: the other jobs go on
                _say(f"error: {_own_sentence(error)} (of the job {_overrides(job)})")
                raise Said() from error

        self._hydra(task)

    def _hydra(self, task: Callable[[Any], Any]) -> None:
        import hydra

        from carp_plugin.settings.hydra_defaults import install

        # Hydra would print its own half of every error; with this set it raises them.
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        install()
        hydra.main(version_base="1.2", config_path=None)(task)()

    def do(self, cfg: Any) -> Any:
        """Reads a composed configuration and runs it."""
        from carp_plugin.settings.reading import plain

        settings = _named(self.read)(plain(cfg))
        return _named(self.run)(settings)

    def settings(self) -> Type[Any]:
        """The model of its settings."""
        return _named(self.model)

    def help(self) -> str:
        """What ``--help`` prints."""
        from carp_plugin.settings.recipes import folder

        root = folder(self.recipes)
        found = sorted(str(path.relative_to(root)) for path in root.rglob("*.y*ml"))
        called = self.called()
        keys = [name for name in self.settings().model_fields if name not in _LESS_SAID]
        return (
            f"{self.about}\n\n"
            f"usage: {called} --config-name NAME [--config-path FOLDER] [KEY=VALUE ...]\n\n"
            f"  {called} {self.example}\n\n"
            f"configurations in {root}:\n{_wrapped(found)}\n\n"
            f"keys, each set by KEY=VALUE or NODE.KEY=VALUE:\n{_wrapped(keys)}\n\n"
            f"  {called} --keys [WORD]     every key that has WORD in it: type, default, meaning\n"
            f"  {called} --hydra-help      Hydra's own flags (-m for several jobs, --cfg job)\n"
            "  docs/configuration.md      all of it as a page"
        )

    def called(self) -> str:
        """How the user called it."""
        name = Path(sys.argv[0]).name
        return f"python {name}" if name.endswith(".py") else self.name

    def _say_keys(self, words: Sequence[str]) -> None:
        from carp_plugin.settings.reference import say_keys

        say_keys(self.settings(), words)


@dataclass(frozen=True)
class FlagCommand:
    """A command that flags tell what to do, as the host's offline scripts.

    Attributes:
        script: of a checkout.
        name: of an installation.
        about: what it does, in a sentence.
        model: ``module:class`` of the settings, whose keys are the flags.
        run: ``module:function`` of the settings.
    """

    script: str
    name: str
    about: str
    model: str
    run: str

    def main(self, arguments: Optional[Sequence[str]] = None) -> None:
        """Does what the command line says.

        Args:
            arguments: without the program's name; None takes those of this process.
        """
        given = sys.argv[1:] if arguments is None else arguments
        silence_third_parties()
        with lasting_streams(), saying_mistakes():
            settings = self.read(given)
            _named(self.run)(settings)

    def settings(self) -> Type[Any]:
        """The model of its settings."""
        return _named(self.model)

    def read(self, arguments: Sequence[str]) -> Any:
        """The settings that flags mean.

        Raises:
            UserError: the first mistake.
        """
        from carp_plugin.settings.flags import read_flags

        name = Path(sys.argv[0]).name
        prog = self.name if name == self.name else self.script
        return read_flags(self.settings(), arguments, prog, self.about)


#: Keys that are Lightning's, and seldom set.
_LESS_SAID = (
    "limit_test_batches limit_predict_batches overfit_batches barebones inference_mode use_distributed_sampler "
    "reload_dataloaders_every_n_epochs enable_autolog_hparams default_root_dir min_steps min_epochs finetune mixup "
    "cutmix label_smoothing auto_augment"
).split()


def _named(place: str) -> Any:
    """What ``module:name`` stands for."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _wrapped(words: Sequence[str]) -> str:
    import textwrap

    text = "  ".join(words)
    lines = textwrap.wrap(text, 96, break_on_hyphens=False, break_long_words=False)
    return "\n".join(f"  {line}" for line in lines)
