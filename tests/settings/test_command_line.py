"""What a user types in bash, and what a run is then told."""

import os
import shlex
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from carp_plugin.commands.entries import COMPARE, LINEAR
from carp_plugin.errors import typed
from carp_plugin.settings.command_line import hydra_override, quoted
from carp_plugin.settings.pretraining import CarpPretraining
from tests.helpers import small_cfg
from tests.settings.captured import settings_of, typed_in_bash

HOME = os.path.expanduser("~")


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A folder with one configuration, in which the user is."""
    monkeypatch.setenv("DATA", "/data/of mine")
    content = OmegaConf.to_container(small_cfg(tmp_path))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def told(folder, line):
    return settings_of(typed_in_bash(f"--config-path . --config-name small.yaml {line}", folder))


def at(settings, dotted):
    for part in dotted.split("."):
        settings = settings[int(part)] if part.isdigit() else getattr(settings, part)
    return settings


# (typed in bash, key, value)
SPELLINGS = [
    # known keys that the file does not set
    ("enable_progress_bar=False", "enable_progress_bar", False),
    ("limit_train_batches=2", "limit_train_batches", 2),
    ("limit_train_batches=0.5", "limit_train_batches", 0.5),
    ("optimizer.kwargs.momentum=.5", "optimizer.kwargs.momentum", 0.5),
    ("+optimizer.kwargs.momentum=0.5", "optimizer.kwargs.momentum", 0.5),
    ("++optimizer.kwargs.momentum=5e-1", "optimizer.kwargs.momentum", 0.5),
    ("+max_epochs=7", "max_epochs", 7),
    ("backbone.kwargs.zero_init_residual=True", "backbone.kwargs", {"zero_init_residual": True}),
    ("max_time=00:00:00:12", "max_time", "00:00:00:12"),
    # paths
    ("resume_from_checkpoint='a/x-ep=0.ckpt'", "resume_from_checkpoint", "a/x-ep=0.ckpt"),
    (
        "resume_from_checkpoint=a/x-ep=1-step=4.ckpt",
        "resume_from_checkpoint",
        "a/x-ep=1-step=4.ckpt",
    ),
    ('data.train_path="/data/été (1)/train"', "data.train_path", "/data/été (1)/train"),
    ("data.train_path=/d/a#b", "data.train_path", "/d/a#b"),
    ("data.train_path=/d/[raw]", "data.train_path", "/d/[raw]"),
    ('data.train_path="/d/Bilder, 2024"', "data.train_path", "/d/Bilder, 2024"),
    ("data.train_path=~/d", "data.train_path", f"{HOME}/d"),
    ("'data.train_path=~/d'", "data.train_path", f"{HOME}/d"),
    ("data.train_path=$HOME/d", "data.train_path", f"{HOME}/d"),
    ("'data.train_path=$HOME/d'", "data.train_path", f"{HOME}/d"),
    ("'data.train_path=${DATA}/d'", "data.train_path", "/data/of mine/d"),
    ("\"data.train_path='/d/x y'\"", "data.train_path", "/d/x y"),
    ("'data.train_path=\"/d/x y\"'", "data.train_path", "/d/x y"),
    ("++data.train_path=/d/x=1", "data.train_path", "/d/x=1"),
    ("+data.train_path=/d/{a}", "data.train_path", "/d/{a}"),
    ('data.train_path="/d/it\'s"', "data.train_path", "/d/it's"),
    ("data.train_path=$'/d/a\\nb'", "data.train_path", "/d/a\nb"),
    ("data.train_path='/d/back\\slash'", "data.train_path", "/d/back\\slash"),
    ("data.train_path='/d/end\\'", "data.train_path", "/d/end\\"),
    ("data.train_path='/d/q\"uote'", "data.train_path", '/d/q"uote'),
    ("data.train_path=/d/true", "data.train_path", "/d/true"),
    ("data.train_path=2024", "data.train_path", "2024"),
    ("checkpoint.dir='../a, b/{c}'", "checkpoint.dir", "../a, b/{c}"),
    # null
    ("data.val_path=null", "data.val_path", None),
    ("data.val_path=None", "data.val_path", None),
    ("~data.val_path", "data.val_path", None),
    ("checkpoint=null", "checkpoint.enabled", False),
    ("~momentum", "momentum.base_tau", 0.99),
    # numbers, words and lists
    ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
    ("optimizer.weight_decay=1E-6", "optimizer.weight_decay", 1e-6),
    ("optimizer.lr=1", "optimizer.lr", 1.0),
    (
        "'optimizer.classifier_lr=${optimizer.lr}' optimizer.lr=0.0012",
        "optimizer.classifier_lr",
        0.0012,
    ),
    ("scheduler.name=step scheduler.lr_decay_steps=[60,80]", "scheduler.lr_decay_steps", (60, 80)),
    ("scheduler.name=step scheduler.lr_decay_steps=60,80", "scheduler.lr_decay_steps", (60, 80)),
    (
        "scheduler.name=step 'scheduler.lr_decay_steps=[60, 80]'",
        "scheduler.lr_decay_steps",
        (60, 80),
    ),
    ("devices=0,1", "devices", "0,1"),
    ("devices=[0,1]", "devices", (0, 1)),
    ("devices=2", "devices", 2),
    ("name=été", "name", "été"),
    ("name='my run'", "name", "my run"),
    ("\"name='5'\"", "name", "5"),
    ("'checkpoint={enabled: False, frequency: 3}'", "checkpoint.frequency", 3),
    ("augmentations.0.crop_size=20", "augmentations.0.crop_size", 20),
    ("augmentations.0.mean=[0.5,0.5,0.5]", "augmentations.0.mean", (0.5, 0.5, 0.5)),
    ("method=mocov2plus ~method_kwargs method_kwargs.queue_size=5", "method_kwargs.queue_size", 5),
    # flags behind overrides
    ("seed=7 --config-dir .", "seed", 7),
]


@pytest.mark.parametrize("line, key, value", SPELLINGS, ids=[s[0] for s in SPELLINGS])
def test_what_is_typed_is_what_the_run_is_told(line, key, value, configured):
    found = at(told(configured, line), key)
    assert found == value and type(found) is type(value)


# (typed in bash, the sentence)
REFUSED = [
    ("max_epoch=3", "max_epoch is not a key of the configuration; did you mean 'max_epochs'"),
    ("++optimizer.learning_rate=1", "optimizer.learning_rate is not a key of the configuration"),
    (
        "data.train_pth=x",
        "data.train_pth is not a key of the configuration; did you mean 'train_path'?",
    ),
    ("augmentations.0.colour=1", "augmentations.0.colour is not a key of the configuration"),
    ("max_epochs", "the override 'max_epochs' cannot be read; expected KEY=VALUE."),
    ("=3", "the override '=3' cannot be read; expected KEY=VALUE."),
    ("max_epochs=1,2", "max_epochs must be a whole number of at least 1, got '1,2'"),
    ("data.val_path=", "data.val_path must be a path or null, got ''."),
    ("optimizer.batch_size='a=b [c'", "optimizer.batch_size must be a whole number"),
    (
        "optimizer=[1,2]",
        "optimizer=[1,2] is of another kind than what the configuration has there; "
        "give a list for a list, and keys one by one (optimizer.KEY=VALUE).",
    ),
    ("~nothing", "'nothing' does not exist"),
    ("--no-such-flag", "unrecognized arguments: --no-such-flag; settings are given as KEY=VALUE"),
    ("'name=${nowhere}'", "Interpolation key 'nowhere' not found"),
    ("name=5", "name must be a text that a file can be named after"),
    ("--config-name smal.yaml", "there is no configuration 'smal.yaml'"),
    ("--config-path nowhere", "nowhere does not exist; check --config-path"),
]


@pytest.mark.parametrize("line, says", REFUSED, ids=[r[0] for r in REFUSED])
def test_a_slip_is_one_sentence(line, says, configured, capsys):
    with pytest.raises(SystemExit) as left:
        told(configured, line)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert says in err and "Traceback" not in out + err


def test_several_jobs_take_the_values_between_commas(configured):
    """With -m a comma means what it means to Hydra, of a path too unless it stands in quotes."""
    assert told(configured, "-m optimizer.lr=0.1,0.2").optimizer.lr == 0.2
    assert told(configured, "-m data.train_path=/a,/b").data.train_path == "/b"
    assert told(configured, "-m \"data.train_path='/a,/b'\"").data.train_path == "/a,/b"


ODD = ["a", "it's", "a\\", "a\\'b", "x'", "a\\\\'", 'q"', "a\nb", "é, [x]={y}"]


@pytest.mark.parametrize("text", ODD)
def test_a_path_is_read_as_it_is_and_quoting_it_again_changes_nothing(text, configured):
    """The other processes of a run are started with what the first one was given."""
    assert told(configured, shlex.quote(f"data.train_path={text}")).data.train_path == text
    once = hydra_override(f"data.train_path={text}", CarpPretraining, False, lambda key: False)
    assert once == f"++data.train_path={quoted(text)}"
    assert hydra_override(once, CarpPretraining, False, lambda key: False) == once


@pytest.mark.parametrize(
    "path", ["a-ep=0.ckpt", "/d/été (1)/x.ckpt", "/d/it's, [b]={c}/x.ckpt", "/d/$HOME `x`.ckpt"]
)
def test_a_setting_that_is_said_can_be_pasted(path, configured):
    """Whatever a path holds, but for what stands for the environment."""
    line = typed("resume_from_checkpoint", path)
    found = told(configured, line).resume_from_checkpoint
    assert found == os.path.expandvars(path)


def test_a_configuration_is_found_from_where_the_user_is_and_by_its_folders(
    configured, monkeypatch
):
    (configured / "mine").mkdir()
    (configured / "small.yaml").rename(configured / "mine" / "small.yaml")
    monkeypatch.chdir(configured)
    for line in (
        "--config-path mine --config-name small",
        f"--config-path {shlex.quote(str(configured))} --config-name mine/small.yaml",
        "--config-name=mine/small --config-path=.",
        "-cp mine -cn small",
    ):
        assert settings_of(typed_in_bash(line, configured)).name == "carp-test", line


def test_the_recipes_of_the_project_have_names():
    assert (
        settings_of(["--config-name", "imagenet/carp.yaml"]).method_kwargs.num_prototypes == 65536
    )
    linear = ["--config-name", "carp.yaml", "pretrained_feature_extractor=a b/x-ep=1.ckpt"]
    assert settings_of(linear, LINEAR).pretrained_feature_extractor == "a b/x-ep=1.ckpt"
    asked = settings_of(["--config-name", "photos.yaml", "methods=carp,byol", "seeds=[3]"], COMPARE)
    assert asked.comparison.methods == ("carp", "byol") and asked.comparison.seeds == (3,)


def test_a_path_in_yaml_is_expanded_too(configured, monkeypatch):
    content = yaml.safe_load((configured / "small.yaml").read_text())
    content["data"].update(train_path="~/a", val_path="${DATA}/$HOME")
    (configured / "small.yaml").write_text(yaml.safe_dump(content))
    data = told(configured, "").data
    assert data.train_path == f"{HOME}/a" and data.val_path == f"/data/of mine/{HOME}"


def test_the_processes_that_lightning_starts_are_given_what_the_user_typed(configured, monkeypatch):
    import sys

    seen = []
    monkeypatch.setattr(
        "tests.settings.captured.keep", lambda settings: seen.append(list(sys.argv))
    )
    words = typed_in_bash(
        "--config-path . --config-name small.yaml data.train_path=~/d", configured
    )
    with pytest.raises(IndexError):  # nothing was kept
        settings_of(words)
    assert seen[0][1:] == words and Path(seen[0][0]).name == "main_pretrain.py"


def test_a_job_of_several_that_fails_does_not_end_the_others(configured, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("tests.settings.captured.keep", lambda s: seen.append(s.optimizer.lr))
    line = (
        "--config-path . --config-name small.yaml optimizer.lr=0.1,-1,0.2,-2 -m"  # flags last too
    )
    with pytest.raises(SystemExit) as left:
        settings_of(typed_in_bash(line, configured))
    err = capsys.readouterr().err
    assert left.value.code == 2 and seen == [0.1, 0.2] and "Traceback" not in err
    for value in ("-1", "-2"):
        says = f"error: optimizer.lr must be a number of at least 0, got {value}. (of the job optimizer.lr={value})"
        assert says in err.splitlines()


def test_the_processes_of_one_job_of_several_are_given_that_job_alone(configured, monkeypatch):
    """Or each would run the whole sweep."""
    import sys

    seen = []
    monkeypatch.setattr("tests.settings.captured.keep", lambda settings: seen.append(sys.argv[1:]))
    line = "--config-path . --config-name small.yaml -m seed=0,1 data.train_path='/a b'"
    with pytest.raises(IndexError):  # nothing was kept
        settings_of(typed_in_bash(line, configured))
    monkeypatch.undo()
    assert len(seen) == 2 and not {"-m", "--multirun"} & {word for words in seen for word in words}
    for seed, words in enumerate(seen):
        assert settings_of(words).seed == seed and settings_of(words).data.train_path == "/a b"
