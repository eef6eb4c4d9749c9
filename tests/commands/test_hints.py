"""What a command tells the user to type is typed into bash as it was printed, and works."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import carp_plugin
from carp_plugin.commands.entries import CONFIGURED, FLAGGED
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.settings.flags import flag
from carp_plugin.settings.model import field_at, walk
from carp_plugin.settings.pretraining import OWN
from tests.commands.test_pretrain import MISTAKES, interrupted_at
from tests.helpers import image_folder, small_settings
from tests.launching import write_config
from tests.run_cli import run_cli
from tests.settings.captured import settings_of, typed_in_bash

PACKAGE = Path(carp_plugin.__file__).parent

#: ``KEY=VALUE`` within a sentence; VALUE ends at a space or with the sentence, and a list or quotes may hold either.
_HINT = re.compile(r"(?<![\w./}-])([a-z_]+(?:\.[a-z_]+)*)=('[^']*'|\[[^\]]*\]|[^\s,;)]+)")

#: Words before "=" in texts that are no keys: arguments of functions, a group of configurations, markup, SLURM's.
_NO_KEYS = set(
    "fused fraction seed rows columns features views width height schema nodes key year image_set download".split()
)


def hints_in(text):
    """(key, value) of every setting that a text tells to type."""
    return [(key, value.rstrip(".:")) for key, value in _HINT.findall(text)]


def sentences_of(path):
    """Every text of a module that is no docstring, what is filled in standing as {}."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside | docs
        ):
            yield node.value


def is_key(key):
    models = [command.settings() for command in CONFIGURED] + list(OWN.values())
    return any(field_at(model, key) for model in models)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_every_setting_that_a_sentence_names_is_a_key(path):
    for text in sentences_of(path):
        for key, _ in hints_in(text) if " " in text and "<" not in text else []:
            assert is_key(key) or key in _NO_KEYS, f"{key}= in {text!r}"
        assert not re.search(r"\+\+[a-z]", text), text


def test_every_flag_that_a_sentence_names_is_a_flag():
    known = {flag(key) for command in FLAGGED for key, _, _ in walk(command.settings())}
    hydra = {
        "--config-name",
        "--config-path",
        "--help",
        "--hydra-help",
        "--keys",
        "--version",
        "--cfg",
    }
    slurm = {
        "--nodes",
        "--ntasks",
        "--ntasks-per-node",
        "--no-deps",
        "--nproc-per-node",
        "--standalone",
    }
    for path in PACKAGE.rglob("*.py"):
        for text in sentences_of(path):
            for named in (
                re.findall(r"(?<![\w-])--[a-z](?:[\w-]|\.\w)+", text) if " " in text else []
            ):
                assert named in known | hydra | slurm, f"{named} in {text!r}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def config_dir(tmp_path, images):
    folder = tmp_path / "configs"
    write_config(folder, images)
    return folder


@pytest.mark.parametrize("arguments", [m[1] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_what_a_mistake_advises_is_taken(
    arguments, images, config_dir, tmp_path, capsys, monkeypatch
):
    """Each advice of the sentence that a mistake earns, typed into bash behind the good configuration."""
    given = arguments(images) if callable(arguments) else list(arguments)
    if not any("--config-name" in argument for argument in given) and arguments:
        given = ["--config-name", "small.yaml", *given]
    if not any("--config-path" in argument for argument in given):
        given = ["--config-path", str(config_dir), *given]
    code, _, err = run_cli(capsys, monkeypatch, "main_pretrain.py", given)
    assert code == 2
    typed = {argument.lstrip("+").partition("=")[0] for argument in given}
    for key, value in hints_in(err.partition("error: ")[2]):
        if value in ("PATH", "VALUE") or (key in typed and f"{key}={value}" in err.split(";")[0]):
            continue  # a placeholder, or what was wrong
        line = (
            f"--config-path {shlex.quote(str(config_dir))} --config-name small.yaml {key}={value}"
        )
        settings = settings_of(typed_in_bash(line, tmp_path))
        assert settings is not None


def test_the_command_that_an_interrupted_run_prints_goes_on(images, tmp_path, capsys):
    """The very line, from the terminal into bash; its path holds an `=`, a space and an apostrophe."""
    changes = {"evaluation": {"enabled": False}, "checkpoint__dir": "it's mine", "max_epochs": 2}
    with interrupted_at("carp", step=4), pytest.raises(KeyboardInterrupt) as stopped:
        pretrain(small_settings(images, **changes))
    hint = re.search(r"resume with (resume_from_checkpoint=.*)\.$", str(stopped.value)).group(1)
    assert "ep=0.ckpt" in hint
    named = write_config(tmp_path / "configs", images, **changes)
    line = " ".join([*map(shlex.quote, named), hint])
    settings = settings_of(typed_in_bash(line, tmp_path))
    GlobalHydra.instance().clear()
    summary = pretrain(settings)
    assert summary["steps"] == 6 and "last epoch:" in capsys.readouterr().out


def test_a_fraction_of_bad_images_that_is_offered_is_taken(images, tmp_path, capsys, monkeypatch):
    import shutil

    folder = Path(shutil.copytree(images, tmp_path / "some"))
    (folder / "train/class_0/0.png").write_bytes(b"no image")
    named = write_config(tmp_path / "configs", folder, max_epochs=1, evaluation={"enabled": False})
    code, _, err = run_cli(capsys, monkeypatch, "main_pretrain.py", named)
    assert code == 2
    (hint,) = [f"{k}={v}" for k, v in hints_in(err) if k == "data.max_bad_fraction" and v != "0.01"]
    given = typed_in_bash(" ".join([*map(shlex.quote, named), hint]), tmp_path)
    code, out, err = run_cli(capsys, monkeypatch, "main_pretrain.py", given)
    assert code == 0 and "1 of 24 images could not be read" in out, err
