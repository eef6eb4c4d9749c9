"""`python main_pretrain.py`: a whole run, its outputs, resuming, and what twenty-odd mistakes earn."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from carp_plugin import register
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.errors import UserError
from carp_plugin.host import DALI_AVAILABLE, HOST, METHODS, AutoUMAP, MomentumUpdater
from carp_plugin.methods.known import check_pretraining
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain
from carp_plugin.training.pretraining import build_model, check_run
from tests.helpers import METHOD_KWARGS, image_folder, small_cfg, small_settings, write_image
from tests.launching import run, write_config
from tests.run_cli import ROOT, run_cli


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def config_dir(tmp_path, images):
    """A folder with one small configuration, as a user would write it."""
    folder = tmp_path / "configs"
    folder.mkdir()
    content = OmegaConf.to_container(small_cfg(images))
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_from_the_command_line_to_its_summary(config_dir, capsys, monkeypatch):
    arguments = ["--config-path", str(config_dir), "--config-name", "small.yaml", "max_epochs=1"]
    arguments += ["debug_augmentations=True"]  # which no file sets
    code, out, _ = run_cli(capsys, monkeypatch, "main_pretrain.py", arguments)
    assert code == 0, out
    assert "Transforms:" in out and "RandomResizedCrop(size=(16, 16)" in out
    for word in (
        HOST.version,
        "carp on resnet18",
        "24 images, 6 classes",
        "global batch",
        "K = 32",
    ):
        assert word in out
    assert "4 blocks" in out and "3 an epoch, 3 in 1 epochs" in out
    for row in ("random, before training", "student", "teacher", "k-NN (k = 20)"):
        assert row in out
    (summary_path,) = Path("trained_models/carp").rglob("summary.json")
    summary = json.loads(summary_path.read_text())
    assert summary["steps"] == 3 and Path(summary["checkpoint"]).parent == summary_path.parent
    assert [row["features"] for row in summary["accuracy"]] == [
        "random, before training",
        "student",
        "teacher",
    ]
    assert all(0 <= row["knn"] <= 100 for row in summary["accuracy"])
    assert summary["host"] == HOST.as_dict()
    assert summary["config"]["optimizer"]["batch_size"] == 8
    assert summary["config"]["optimizer"]["lr"] == 0.3  # as it was written
    assert summary["plan"]["lr"] == pytest.approx(0.3 * 8 / 256)
    state = weights(summary["checkpoint"])
    assert any(key.startswith("prototypes.") for key in state)


def test_a_file_that_says_what_hydra_is_to_do_still_runs(config_dir, capsys, monkeypatch, tmp_path):
    """As files for 0.1 did: shared parts found by name, and Hydra's own logs and folders switched off."""
    content = yaml.safe_load((config_dir / "small.yaml").read_text())
    for key in ("checkpoint", "evaluation"):
        content[key] = {"enabled": False}
    content["hydra"] = {
        "output_subdir": None,
        "run": {"dir": "."},
        "searchpath": ["pkg://carp_plugin.configs"],
    }
    content["defaults"] = [
        "run",
        "_self_",
        {"override hydra/hydra_logging": "disabled"},
        {"override hydra/job_logging": "disabled"},
    ]
    (config_dir / "old.yaml").write_text(yaml.safe_dump(content))
    arguments = ["--config-path", str(config_dir), "--config-name", "old", "++max_epochs=1"]
    code, out, err = run_cli(capsys, monkeypatch, "main_pretrain.py", arguments)
    assert code == 0, err
    assert "3 an epoch, 3 in 1 epochs" in out
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_batch_with_too_few_rows_for_a_block_is_warned_about(images, capsys):
    pretrain(
        small_settings(
            images,
            max_epochs=1,
            method_kwargs__num_prototypes=128,
            method_kwargs__partition_size=64,
            evaluation={"enabled": False},
        )
    )
    out = capsys.readouterr().out
    assert (
        "32 rows" in out and "partition_size B = 64" in out and "partition_size=32 or less" in out
    )


@pytest.mark.parametrize("method", ["carp", "byol"])
def test_resumed_run_continues_steps_learning_rate_tau_and_history(method, images, monkeypatch):
    seen = []
    update = MomentumUpdater.update

    def spy(self, *pair):
        seen.append(self.cur_tau)
        update(self, *pair)

    monkeypatch.setattr(MomentumUpdater, "update", spy)
    settings = {
        "max_epochs": 4,
        "auto_resume": {"enabled": True},
        "evaluation": {"enabled": False},
        "optimizer__name": "adamw",
    }
    taus, rates, epochs = [], [], []
    for name in ("whole", "broken"):
        seen.clear()
        if name == "broken":
            with interrupted_at(method, step=6), pytest.raises(KeyboardInterrupt):
                pretrain(small_settings(images, method, checkpoint__dir=name, **settings))
        summary = pretrain(small_settings(images, method, checkpoint__dir=name, **settings))
        state = torch.load(summary["checkpoint"], weights_only=True)
        taus.append(list(dict.fromkeys(seen)))
        rates.append(state["optimizer_states"][0]["param_groups"][0]["lr"])
        epochs.append([(e["epoch"], e["step"]) for e in json.loads(_metrics(summary))])
    assert len(taus[0]) == 12 and taus[0] == pytest.approx(taus[1])
    assert rates[0] == pytest.approx(rates[1])
    assert epochs[0] == epochs[1] == [(0, 3), (1, 6), (2, 9), (3, 12)]


def test_a_method_with_a_static_learning_rate_is_resumed(images):
    """SimSiam's predictor keeps its rate, by a function inside the schedule that no checkpoint may hold."""
    settings = {"max_epochs": 2, "evaluation": {"enabled": False}}
    with interrupted_at("simsiam", step=4), pytest.raises(KeyboardInterrupt):
        pretrain(small_settings(images, "simsiam", **settings))
    (path,) = Path("trained_models/simsiam").rglob("*.ckpt")
    summary = pretrain(
        small_settings(images, "simsiam", **settings, resume_from_checkpoint=str(path))
    )
    groups = torch.load(summary["checkpoint"], weights_only=True)["optimizer_states"][0]
    rates = {round(group["lr"], 9) for group in groups["param_groups"]}
    assert summary["steps"] == 6 and len(rates) > 1 and max(rates) == round(0.3 * 8 / 256, 9)


@contextmanager
def interrupted_at(method, step):
    """Ctrl-C in the middle of a training step."""
    register()
    cls = METHODS[method]
    training_step = cls.training_step

    def interrupting(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)

    cls.training_step = interrupting
    try:
        yield
    finally:
        cls.training_step = training_step


def _metrics(summary):
    return Path(summary["checkpoint"]).with_name("metrics.json").read_text()


def test_a_finished_run_is_shown_again_and_left_as_it_is(images, capsys):
    settings = {"auto_resume": {"enabled": True}, "max_epochs": 1}
    first = pretrain(small_settings(images, **settings))
    summary = Path(first["checkpoint"]).with_name("summary.json").read_text()
    second = pretrain(small_settings(images, **settings))
    assert "had finished already" in capsys.readouterr().out
    assert second["accuracy"] == first["accuracy"] and second["checkpoint"] == first["checkpoint"]
    assert Path(first["checkpoint"]).with_name("summary.json").read_text() == summary


def torn(path, state):
    path.write_bytes(path.read_bytes()[:10_000])


def of_another_model(path, state):
    state["state_dict"]["projector.renamed"] = state["state_dict"].pop("projector.0.weight")
    torch.save(state, path)


def with_code(path, state):
    state["extra"] = Path("anything that is not a tensor")
    torch.save(state, path)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (torn, "cannot be read"),
        (
            of_another_model,
            r"another model: \d+ of \d+ tensors fit, 1 missing .projector.0.weight., "
            r"1 left over .projector.renamed",
        ),
        (with_code, r"is refused: .*pathlib.* which could run code .*nothing was run"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence(spoil, says, images):
    settings = {"max_epochs": 1, "evaluation": {"enabled": False}}
    path = Path(pretrain(small_settings(images, **settings))["checkpoint"])
    spoil(path, torch.load(path, weights_only=True))
    with pytest.raises(UserError, match=says):
        pretrain(small_settings(images, **settings, resume_from_checkpoint=str(path)))


def test_changed_method_kwargs_do_not_resume_the_old_run(images, capsys):
    first = {"auto_resume": {"enabled": True}, "max_epochs": 1, "evaluation": {"enabled": False}}
    pretrain(small_settings(images, **first))
    pretrain(small_settings(images, **first, method_kwargs__partition_size=4))
    assert "resuming from" not in capsys.readouterr().out
    pretrain(small_settings(images, **first))
    assert "resuming from" in capsys.readouterr().out


def test_last_epoch_is_saved_whatever_the_frequency(images):
    summary = pretrain(
        small_settings(images, max_epochs=3, checkpoint__frequency=2, checkpoint__keep_prev=True)
    )
    names = sorted(path.name for path in Path(summary["checkpoint"]).parent.glob("*.ckpt"))
    assert [name.split("ep=")[1] for name in names] == ["0.ckpt", "2.ckpt"]
    summary = pretrain(
        small_settings(images, max_epochs=4, checkpoint__frequency=2, evaluation={"enabled": False})
    )
    assert summary["checkpoint"].endswith("ep=3.ckpt")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"limit_val_batches": 0.01}, "limit_val_batches"),
        ({"val_check_interval": 1000}, "val_check_interval"),
    ],
)
def test_what_lightning_refuses_is_one_sentence(changes, says, images):
    with pytest.raises(UserError, match=f"Lightning refuses these settings: .*{says}"):
        pretrain(small_settings(images, max_epochs=1, evaluation={"enabled": False}, **changes))


@pytest.mark.parametrize("method", ["carp", "byol"])
def test_three_classes_are_enough_for_the_momentum_classifier(method, tmp_path):
    images = image_folder(tmp_path / "three", classes=3)
    settings = small_settings(
        images, method, max_epochs=1, evaluation={"enabled": False}, momentum__classifier=True
    )
    assert pretrain(settings)["last_epoch"]["train_momentum_acc5"] == 100


def test_run_without_labels_or_checkpoint_says_so(images, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((images / "train").rglob("*.png"))):
        shutil.copy(path, flat / f"{i}.png")
    summary = pretrain(
        small_settings(
            images,
            max_epochs=1,
            data__train_path=str(flat),
            data__val_path=None,
            data__no_labels=True,
            checkpoint__enabled=False,
        )
    )
    assert summary["accuracy"] == [] and summary["checkpoint"] is None
    assert "no checkpoint was written" in capsys.readouterr().out


@pytest.mark.skipif(not DALI_AVAILABLE, reason="NVIDIA DALI is not installed (extra: dali)")
@pytest.mark.parametrize("indexes", [False, True])
def test_dali_on_the_cpu_serves_every_step_of_every_epoch(indexes, images):
    """solo-learn issue 265: every second epoch was once skipped."""
    summary = pretrain(
        small_settings(
            images,
            max_epochs=3,
            data__format="dali",
            data__num_workers=1,
            dali={"device": "cpu", "encode_indexes_into_labels": indexes},
        )
    )
    assert summary["steps"] == 3 * (24 // 8)
    epochs = json.loads(_metrics(summary))
    assert [epoch["step"] for epoch in epochs] == [3, 6, 9]


@pytest.mark.skipif(AutoUMAP is None, reason="umap-learn is not installed (extra: umap)")
def test_umap_is_drawn_when_asked_for(images):
    pretrain(
        small_settings(
            images,
            max_epochs=1,
            auto_umap={"enabled": True},
            evaluation={"enabled": False},
            checkpoint__enabled=False,
        )
    )
    assert len(list(Path("auto_umap/carp").rglob("*.pdf"))) == 1


def test_missing_umap_says_how_to_install_it(images, monkeypatch):
    monkeypatch.setattr("carp_plugin.training.pretraining.AutoUMAP", None)
    settings = small_settings(images, auto_umap={"enabled": True}, evaluation={"enabled": False})
    with pytest.raises(UserError, match="pip install carp-plugin.umap."):
        pretrain(settings)


@pytest.mark.parametrize("devices", [1, [0], "auto", "0"])
def test_every_spelling_of_one_cpu_is_one_cpu(devices, images):
    if devices == "0":
        devices = "0,"
    settings = small_settings(images, devices=devices)
    machine = check_run(settings)
    cfg = build_model(settings, machine).cfg
    assert machine.devices == (0,) and len(cfg.devices) == 1
    assert cfg.optimizer.lr == pytest.approx(0.3 * 8 / 256)


def test_interrupting_says_what_is_left(images):
    says = "interrupted in epoch 1 at step 4.*ep=0.ckpt"
    with interrupted_at("carp", step=4), pytest.raises(KeyboardInterrupt, match=says):
        pretrain(small_settings(images, evaluation={"enabled": False}))


def test_full_disk_leaves_the_earlier_checkpoint(images, monkeypatch, capsys):
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    save = TorchCheckpointIO.save_checkpoint

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if checkpoint["epoch"] == 1:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", save_checkpoint)
    with pytest.raises(UserError, match="No space left on device.*earlier checkpoints are intact"):
        pretrain(small_settings(images, evaluation={"enabled": False}))
    (left,) = [path for path in Path("trained_models").rglob("*") if "ckpt" in path.name]
    assert left.name.endswith("ep=0.ckpt") and weights(left)


def test_an_image_that_a_worker_cannot_read_ends_the_run(images, tmp_path):
    """Its loader's workers ignore SIGTERM, and are still there when Python ends."""
    folder = shutil.copytree(images, tmp_path / "torn")
    (folder / "train/class_2/1.png").write_bytes(b"")
    off = {"evaluation": {"enabled": False}, "checkpoint__enabled": False}
    arguments = write_config(tmp_path / "configs", folder, data__num_workers=1, **off)
    ended = run(tmp_path, *arguments)
    assert ended.code == 2 and len(ended.mistakes) == 1, ended.err
    assert "class_2/1.png cannot be read" in ended.mistakes[0]


@pytest.mark.slow
def test_two_processes_train_on_two_shards(config_dir, tmp_path):
    """DistributedDataParallel on gloo: every parameter takes part, and only rank 0 speaks."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "main_pretrain.py")]
    command += ["--config-path", str(config_dir), "--config-name", "small.yaml", "max_epochs=2"]
    command += ["devices=2", "strategy=ddp", "optimizer.batch_size=4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("global batch") == 1 and "8 images" in done.stdout
    assert "3 an epoch, 6 in 2 epochs" in done.stdout
    (summary,) = (tmp_path / "trained_models/carp").rglob("summary.json")
    content = json.loads(summary.read_text())
    assert content["steps"] == 6 and len(content["accuracy"]) == 3


def corrupt_image(folder):
    shutil.copytree(folder, "corrupt")
    next(Path("corrupt/train/class_0").iterdir()).write_bytes(b"not an image")
    return ["data.train_path=corrupt/train"]


def one_image(folder):
    write_image(Path("one/train/class_0/0.png"), seed=0)
    return ["data.train_path=one/train", "data.val_path=null"]


def empty_folder(folder):
    os.makedirs("empty/train")
    return ["data.train_path=empty/train"]


def empty_class(folder):
    shutil.copytree(folder, "gap")
    for path in Path("gap/train/class_0").iterdir():
        path.unlink()
    return ["data.train_path=gap/train"]


def other_classes(folder):
    shutil.copytree(folder / "val", "other/val")
    shutil.move("other/val/class_0", "other/val/cats")
    return ["data.val_path=other/val"]


def blocked_folder(folder):
    Path("file").write_text("")
    return ["checkpoint.dir=file/models"]


# (what the user does, arguments or a function that makes them, what the sentence must say)
MISTAKES = [
    ("no config name", [], r"no configuration is named; add --config-name"),
    ("typo in the config name", ["--config-name", "smal.yaml"], r"did you mean 'small.yaml'"),
    (
        "wrong config path",
        ["--config-path", "nowhere", "--config-name", "small"],
        r"does not exist",
    ),
    ("typo in a key", ["max_epoch=3"], r"max_epoch is not a key.*'max_epochs'"),
    (
        "typo in an added key",
        ["++optimizer.learning_rate=1"],
        r"optimizer.learning_rate is not a key",
    ),
    ("not an override", ["max_epochs"], r"'max_epochs' cannot be read; expected KEY=VALUE"),
    ("unknown method", ["method=byoll"], r"method=byoll is unknown; did you mean 'byol'"),
    ("unknown backbone", ["backbone.name=resnet81"], r"did you mean 'resnet18'"),
    ("unknown data set", ["data.dataset=imagenet1k"], r"did you mean 'imagenet'"),
    ("unknown optimizer", ["optimizer.name=adamx"], r"did you mean 'adam"),
    ("typo in method_kwargs", ["++method_kwargs.n_prototypes=8"], r"did you mean 'num_prototypes'"),
    (
        "K not a multiple of B",
        ["method_kwargs.num_prototypes=33"],
        r"33 must be a multiple.*32 or 40",
    ),
    (
        "batch size of the wrong type",
        ["optimizer.batch_size=many"],
        r"must be a whole number.*'many'",
    ),
    ("negative learning rate", ["optimizer.lr=-0.1"], r"must be a number of at least 0"),
    ("no epochs", ["max_epochs=0"], r"max_epochs must be a whole number of at least 1"),
    (
        "falling tau",
        ["momentum.base_tau=0.99", "momentum.final_tau=0.9"],
        r"is above momentum.final_tau",
    ),
    ("missing value", ["optimizer.lr=???"], r"optimizer.lr is missing"),
    (
        "missing data folder",
        ["data.train_path=nowhere"],
        r"nowhere does not exist.*data.train_path=PATH",
    ),
    ("a file as data folder", ["data.train_path=configs/small.yaml"], r"is not a folder"),
    ("empty data folder", empty_folder, r"holds no class folder"),
    (
        "a tree without an image",
        ["data.train_path=configs", "++data.no_labels=True"],
        r"data.train_path=configs holds no image but small.yaml",
    ),
    ("one image", one_image, r"holds 1 image, fewer than one batch of 8"),
    (
        "batch larger than the data",
        ["optimizer.batch_size=64"],
        r"24 images, fewer.*batch_size=24 or less",
    ),
    ("batch of one", ["optimizer.batch_size=1"], r"batch_size must be at least 2"),
    ("a class without images", empty_class, r"class_0"),
    ("other classes to validate", other_classes, r"class folders of .* differ \(cats, class_0\)"),
    ("corrupt image", corrupt_image, r"the image \S*corrupt/train/class_0/\d.png cannot be read"),
    ("folder that cannot be written", blocked_folder, r"checkpoint.dir=file/models cannot be made"),
    ("missing checkpoint", ["++resume_from_checkpoint=no.ckpt"], r"no.ckpt does not exist"),
    (
        "a GPU that is not there",
        ["accelerator=gpu"],
        r"no CUDA device is visible; add accelerator=cpu",
    ),
    ("devices that are none", ["devices=all"], r"devices=all cannot be read"),
    ("unknown precision", ["++precision=15"], r"Lightning refuses these settings"),
    (
        "one view",
        ["augmentations.0.num_crops=1"],
        r"needs 2 large views, but the augmentations make 1",
    ),
]


@pytest.mark.parametrize("arguments, says", [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_earns_one_sentence(arguments, says, config_dir, images, capsys, monkeypatch):
    if arguments and callable(arguments):
        arguments = arguments(images)
    elif "gpu" in str(arguments) and torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = list(arguments)
    if arguments and not any("--config" in argument for argument in arguments):
        given = ["--config-name", "small.yaml", *given]
    if not any("--config-path" in argument for argument in given):
        given = ["--config-path", str(config_dir), *given]
    code, out, err = run_cli(capsys, monkeypatch, "main_pretrain.py", given)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, (out, err)
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts" / "pretrain").rglob("*.yaml")), ids=lambda p: str(p.name)
)
def test_every_recipe_composes_and_trains_a_method_of_the_host(path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = compose(path.name)
    GlobalHydra.instance().clear()
    OmegaConf.set_struct(cfg, False)
    for key in ("train_path", "val_path"):  # what a recipe leaves to the user
        if OmegaConf.is_missing(cfg.data, key):
            cfg.data[key] = "given"
    settings = read_pretraining(plain(cfg))
    assert settings.method in METHODS and settings.method in METHOD_KWARGS
    check_pretraining(settings)
