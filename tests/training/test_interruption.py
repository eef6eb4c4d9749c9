"""Runs that are stopped and resumed: the same weights bit for bit, from the right run, from a whole checkpoint."""

import json
import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from carp_plugin import register
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.data import images as reading
from carp_plugin.errors import UserError
from carp_plugin.host import METHODS
from carp_plugin.training import run as training
from carp_plugin.training.callbacks.checkpoint import (
    AtomicCheckpointIO,
    Checkpointer,
    claim,
    damage,
    in_use,
)
from carp_plugin.training.callbacks.interrupt import SIGNALS, Stopped
from tests.distributed import fork_server
from tests.helpers import image_folder, small_settings, write_image

STEPS = 3  # an epoch: 24 images in batches of 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settings_of(images, method="carp", **changes):
    quick = {"evaluation": {"enabled": False}, "auto_resume": {"enabled": True}, "max_epochs": 2}
    return small_settings(images, method, **{**quick, **changes})


def everything(summary):
    """All tensors and numbers of a checkpoint that training depends on."""
    content = torch.load(summary["checkpoint"], weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {key: content[key] for key in kept}


def assert_same(one, other, place=""):
    """Equal in every bit."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for i, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{place}/{i}")
    else:
        assert one == other, place


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_killed_worker_costs_no_step(images, tmp_path, monkeypatch):
    """As the kernel's OOM killer does: the run ends with a sentence, saves the step before, and goes on the same."""
    whole = everything(pretrain(settings_of(images, name="whole", checkpoint__dir="whole")))
    read, killed, reads = reading._read, tmp_path / "killed", []

    def reading_until_killed(path, **limits):
        reads.extend([path] * (f"{os.sep}train{os.sep}" in str(path)))
        if len(reads) == 18 and not killed.exists():  # for the third batch, two are read ahead
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, **limits)

    monkeypatch.setattr(reading, "_read", reading_until_killed)
    settings = settings_of(images, name="whole", checkpoint__dir="cut", data__num_workers=1)
    with pytest.raises(UserError, match="a worker that reads images.*exited unexpectedly") as error:
        pretrain(settings)
    saved = re.search(r"-ep=(\d)-step=(\d)\.ckpt", str(error.value))
    assert saved and saved.groups() == ("0", "1"), (
        error.value
    )  # the second batch was not handed over
    assert_same(everything(pretrain(settings)), whole)


class Signals(Callback):
    """Sends this process a signal at a place of the training."""

    def __init__(self, place, step, signum=signal.SIGTERM):
        self.place, self.step, self.signum = place, step, signum

    def _at(self, place, trainer):
        if (place, trainer.global_step) == (self.place, self.step) and not trainer.sanity_checking:
            self.place = "done"
            os.kill(os.getpid(), self.signum)

    def on_train_batch_end(self, trainer, *rest):
        self._at("step", trainer)

    def on_validation_batch_start(self, trainer, *rest):
        self._at("validation", trainer)

    def on_train_epoch_end(self, trainer, *rest):
        self._at("epoch", trainer)


def stopped_at(monkeypatch, settings, *where):
    """Trains until the signal; what the run says."""
    callbacks = training.TrainingRun.callbacks
    with monkeypatch.context() as patched:
        patched.setattr(
            training.TrainingRun, "callbacks", lambda run: [Signals(*where), *callbacks(run)]
        )
        with pytest.raises(Stopped) as stop:
            pretrain(settings)
    return stop.value


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """Checkpoints of runs that were not interrupted, by method and settings."""
    made = {}

    def get(method="carp", **changes):
        key = method + json.dumps(changes, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[key] = everything(
                pretrain(settings_of(images, method, checkpoint__dir=str(folder), **changes))
            )
        return made[key]

    return get


@pytest.mark.parametrize(
    "place, step, workers",
    [
        ("step", 1, 0),  # within the first epoch
        ("step", STEPS + 2, 2),  # within a later one, with images loaded ahead
        ("step", STEPS, 0),  # the last step of an epoch: validation comes next
        ("validation", 2 * STEPS, 0),
        ("epoch", STEPS, 2),
    ],
)
def test_stopped_anywhere_and_resumed_it_ends_as_a_whole_run(
    place, step, workers, images, whole, monkeypatch
):
    settings = settings_of(images, data__num_workers=workers)
    said = stopped_at(monkeypatch, settings, place, step)
    assert said.code == 143 and re.search(
        rf"at step {step} of {2 * STEPS}; .* same command resumes from it", str(said)
    )
    summary = pretrain(settings)
    assert_same(everything(summary), whole())
    history = json.loads(Path(summary["checkpoint"]).with_name("metrics.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [0, 1]
    assert all("val_acc1" in epoch and epoch["train_seconds"] < 60 for epoch in history)
    # its own folder again, with the last two checkpoints
    (folder,) = Path("trained_models/carp").iterdir()
    assert len(list(folder.glob("*.ckpt"))) == 2 and not list(folder.glob("*.part"))


# SwAV has a queue that it makes at the start of training, DINO counts epochs at their start
@pytest.mark.parametrize(
    "method",
    [
        "byol",
        "barlow_twins",
        "simsiam",
        "swav",
        "dino",
        "carl",
        "simclrv2",
        "supervised",
        "pirl",
        "infomin",
    ],
)
def test_other_methods_end_as_a_whole_run_too(method, images, whole, monkeypatch):
    stopped_at(monkeypatch, settings_of(images, method), "step", STEPS + 1)
    assert_same(everything(pretrain(settings_of(images, method))), whole(method))


@pytest.mark.parametrize("step", [1, STEPS + 2])
@pytest.mark.parametrize(
    "method, changes",
    [
        ("pclv2", {}),
        ("selav2", {}),
        ("selav2", {"method_kwargs__labels": "soft"}),
    ],
    ids=["pclv2", "selav2", "selav2, soft"],
)
def test_clusters_and_labels_of_the_epoch_are_gone_on_with(
    method, changes, step, images, whole, monkeypatch
):
    """Found anew within the epoch they would be others: the networks have moved, and so has the memory."""
    stopped_at(monkeypatch, settings_of(images, method, **changes), "step", step)
    assert_same(
        everything(pretrain(settings_of(images, method, **changes))), whole(method, **changes)
    )


def test_deepcluster_goes_on_with_its_memory(images, whole, monkeypatch):
    """Between two epochs: within one, the assignments of its start are gone."""
    stopped_at(monkeypatch, settings_of(images, "deepclusterv2"), "epoch", STEPS)
    summary = pretrain(settings_of(images, "deepclusterv2"))
    assert summary["steps"] == 2 * STEPS
    (folder,) = Path("trained_models/deepclusterv2").iterdir()
    assert len(list(folder.glob("*.ckpt"))) == 2  # its own folder again


@pytest.mark.parametrize("method", ["dino", "selav2"])
def test_stopped_while_the_first_batch_of_an_epoch_loads(method, images, whole, monkeypatch):
    """Lightning then leaves out the epoch's start, at which DINO is told the epoch and SeLa v2 labels images."""

    class Early(Signals):
        def on_train_batch_start(self, trainer, *rest):
            self._at("first", trainer)

    monkeypatch.setattr(sys.modules[__name__], "Signals", Early)
    stopped_at(monkeypatch, settings_of(images, method), "first", STEPS)
    assert_same(everything(pretrain(settings_of(images, method))), whole(method))


def test_a_validation_amid_accumulated_gradients_waits_for_the_step(images, whole, monkeypatch):
    settings = {"accumulate_grad_batches": 2, "optimizer__batch_size": 4, "val_check_interval": 3}
    stopped_at(monkeypatch, settings_of(images, **settings), "validation", 1)
    assert_same(everything(pretrain(settings_of(images, **settings))), whole(**settings))


def test_with_accumulated_gradients_and_adamw(images, whole, monkeypatch):
    settings = {
        "accumulate_grad_batches": 2,
        "optimizer__batch_size": 4,
        "optimizer__name": "adamw",
    }
    # the signal comes with one of two batches accumulated: the step is finished before it is saved
    stopped_at(monkeypatch, settings_of(images, **settings), "step", STEPS + 1)
    assert_same(everything(pretrain(settings_of(images, **settings))), whole(**settings))


def test_numbers_that_a_method_draws_are_those_of_a_whole_run(images, monkeypatch):
    register()
    step = METHODS["carp"].training_step
    drawing = lambda self, batch, i: step(self, batch, i) * (1 + torch.rand(()))  # noqa: E731
    monkeypatch.setattr(METHODS["carp"], "training_step", drawing)
    whole = everything(pretrain(settings_of(images, checkpoint__dir="whole")))
    stopped_at(monkeypatch, settings_of(images), "step", STEPS + 1)
    torch.rand(7)
    assert_same(everything(pretrain(settings_of(images))), whole)


def test_ctrl_c_twice_leaves_at_once(images, monkeypatch):
    class Twice(Signals):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == STEPS + 1:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys.modules[__name__], "Signals", Twice)
    said = stopped_at(monkeypatch, settings_of(images), None, None)
    assert said.code == 130 and "ep=0.ckpt" in str(said)  # nothing of epoch 1 is saved


def test_after_training_signals_mean_what_they_meant(images, monkeypatch):
    before = [signal.getsignal(s) for s in SIGNALS]
    stopped_at(monkeypatch, settings_of(images), "step", 1)
    pretrain(settings_of(images))
    assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize("signum, code", [(signal.SIGHUP, 129), (signal.SIGUSR1, 138)])
def test_a_closed_terminal_and_a_scheduler_s_signal_save_too(
    signum, code, images, whole, monkeypatch
):
    said = stopped_at(monkeypatch, settings_of(images), "step", STEPS + 1, signum)
    assert said.code == code and f"at step {STEPS + 1} of {2 * STEPS}; " in str(said)
    assert_same(everything(pretrain(settings_of(images))), whole())


def test_nohup_goes_on(images, whole, monkeypatch):
    """nohup has SIGHUP ignored; whoever reads what is printed is gone with the terminal, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        callbacks = training.TrainingRun.callbacks
        hangs_up = Signals("step", STEPS + 1, signal.SIGHUP)
        monkeypatch.setattr(
            training.TrainingRun, "callbacks", lambda run: [hangs_up, *callbacks(run)]
        )
        assert_same(everything(pretrain(settings_of(images))), whole())
        assert hangs_up.place == "done" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_max_time_is_that_of_each_process(images, whole):
    """None at all is one step for each; what is left when the last one has been taken is done."""
    changes = {"optimizer__batch_size": 12, "max_time": "00:00:00:00"}
    for step in (1, 2, 3):
        with pytest.raises(Stopped, match=rf"^max_time is over .*at step {step} of 4; ") as stop:
            pretrain(settings_of(images, **changes))
        assert stop.value.code == 143
    summary = pretrain(settings_of(images, **changes))
    assert summary["steps"] == 4 and Path(summary["checkpoint"]).with_name("summary.json").is_file()
    assert_same(everything(summary), whole(optimizer__batch_size=12))


# ------------------------------------------------------------------------------------ what comes after training


def test_a_run_that_ended_before_its_summary_gets_it_from_the_same_command(images, capsys):
    settings = settings_of(images, max_epochs=1, evaluation={"enabled": True, "k": 3})
    first = pretrain(settings)
    path = Path(first["checkpoint"]).with_name("summary.json")
    written = json.loads(path.read_text())
    path.unlink()
    pretrain(settings)
    assert "its summary was missing and is written now" in capsys.readouterr().out
    again = json.loads(path.read_text())
    trained = json.loads(path.with_name("metrics.json").read_text())[0]["train_seconds"]
    assert written.pop("seconds") > 0 and again.pop("seconds") == round(trained, 1)
    assert again == written
    path.write_text("kept")
    pretrain(settings)
    assert path.read_text() == "kept"


def test_the_summary_is_written_before_anything_is_shown(images, monkeypatch):
    def broken(*what):
        raise RuntimeError("nobody reads this")

    monkeypatch.setattr("carp_plugin.training.pretraining.say", broken)
    with pytest.raises(RuntimeError, match="nobody reads this"):
        pretrain(settings_of(images, max_epochs=1))
    (path,) = Path("trained_models").rglob("summary.json")
    assert json.loads(path.read_text())["steps"] == STEPS


# ------------------------------------------------------------------------------------ damaged checkpoints


@pytest.fixture(scope="module")
def two_epochs(images, tmp_path_factory):
    """A run of two epochs, stopped within the second."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patched:
        stopped_at(patched, settings_of(images, checkpoint__dir=str(folder)), "step", STEPS + 1)
    return folder


@pytest.fixture
def run(two_epochs, tmp_path):
    shutil.copytree(two_epochs, tmp_path / "trained_models")
    (folder,) = (tmp_path / "trained_models/carp").iterdir()
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "torn"),
        (lambda path: path.write_bytes(b""), "torn"),
        (flip, "has changed"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    spoil, says, run, images, whole, capsys
):
    newest = next(run.glob("*-step=4.ckpt"))
    spoil(newest)
    assert damage(newest) is not None
    summary = pretrain(settings_of(images))
    out = capsys.readouterr().out
    assert re.search(rf"{newest.name} .*{says}.* passed over for the one before", out)
    assert re.search(r"resuming from .*ep=0.ckpt", out)
    assert_same(everything(summary), whole())
    # it is no checkpoint any more, so that the last two that are kept are whole ones
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert (
        all(damage(path) is None for path in run.glob("*.ckpt"))
        and len(list(run.glob("*.ckpt"))) == 2
    )


def test_one_that_was_asked_for_by_name_is_refused_and_the_one_before_it_named(run, images):
    newest = next(run.glob("*-step=4.ckpt"))
    flip(newest)
    with pytest.raises(UserError, match=r"has changed. The one before it is whole: .*ep=0.ckpt"):
        pretrain(settings_of(images, resume_from_checkpoint=str(newest)))


def test_all_damaged_starts_anew_and_leaves_them_alone(run, images, whole, capsys):
    for path in run.glob("*.ckpt"):
        flip(path)
    before = {path: path.read_bytes() for path in run.iterdir()}
    summary = pretrain(settings_of(images))
    assert "resuming" not in capsys.readouterr().out
    assert_same(everything(summary), whole())
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_what_a_killed_writer_left_is_swept_up(run, images):
    left = run / "carp-test-ep=1.ckpt.123.part"
    left.write_bytes(b"half")
    pretrain(settings_of(images))
    assert not left.exists()


# ------------------------------------------------------------------------------------ the right run


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"seed": 1}, "seed"),
        ({"method_kwargs__partition_size": 4}, "method_kwargs.partition_size"),
        ({"method_kwargs__entropy_weight": 2.0}, "method_kwargs.entropy_weight"),
        ({"data__fraction": 0.5}, "data.fraction"),
        ({"momentum__base_tau": 0.5}, "momentum.base_tau"),
        ({"max_epochs": 3}, "max_epochs"),
        ({"limit_train_batches": 2}, "limit_train_batches"),
    ],
)
def test_a_run_of_other_settings_is_left_alone_and_says_why(changes, key, run, images, capsys):
    pretrain(settings_of(images, **changes))
    out = capsys.readouterr().out
    assert f"({key} was " in out and "resuming" not in out
    assert len(list(run.glob("*.ckpt"))) == 2


def test_other_images_in_the_same_folder_are_another_run(run, tmp_path, capsys):
    images = image_folder(tmp_path / "images", per_class=5)
    args = json.loads((run / "args.json").read_text())
    for split in ("train", "val"):
        args["data"][f"{split}_path"] = str(images / split)
    (run / "args.json").write_text(json.dumps(args))
    pretrain(settings_of(images))
    assert "(images was 24, is 30)" in capsys.readouterr().out


def test_as_many_other_images_are_another_run_too(run, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "images")
    args = json.loads((run / "args.json").read_text())
    for split in ("train", "val"):
        args["data"][f"{split}_path"] = str(tmp_path / "images" / split)
    (run / "args.json").write_text(json.dumps(args))
    write_image(tmp_path / "images/train/class_0/0.png", seed=99, size=31)
    pretrain(settings_of(tmp_path / "images"))
    out = capsys.readouterr().out
    assert "(images_fingerprint was " in out and "resuming" not in out


def test_settings_that_change_no_weight_may_differ(run, images, whole, capsys):
    summary = pretrain(settings_of(images, data__num_workers=1, checkpoint__keep_prev=True))
    assert "resuming" in capsys.readouterr().out
    assert_same(everything(summary), whole())
    assert len(list(run.glob("*.ckpt"))) == 3


@contextmanager
def another_process(function, *arguments):
    """The end of a pipe to a process of its own, which calls the function with the other end first."""
    context = fork_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # if the process dies, the pipe says so
    try:
        yield ours
    finally:
        ours.close()
        process.join(timeout=60)
        process.kill()


def holds(pipe, folder):
    """Claims a run's folder until the other side is gone."""
    kept = claim(folder)
    pipe.send(kept is not None)
    try:
        pipe.recv()
    except EOFError:
        pass


def says_whether_in_use(pipe, folder):
    pipe.send(in_use(folder))


@contextmanager
def held(folder):
    """A run's folder, claimed by another process."""
    with another_process(holds, folder) as holder:
        assert holder.recv()
        yield


def test_a_run_that_another_process_trains_is_left_alone(run, images, capsys):
    with held(run):
        pretrain(settings_of(images))
    out = capsys.readouterr().out
    assert "another process is training it" in out and "resuming" not in out


def test_two_that_find_the_same_run_at_once_do_not_both_train_it(run, images, monkeypatch):
    monkeypatch.setattr(
        "carp_plugin.training.resume.in_use", lambda folder: False
    )  # a moment too early
    before = {path: path.read_bytes() for path in run.iterdir()}
    with held(run), pytest.raises(UserError, match="another process is training in .*wait for it"):
        pretrain(settings_of(images))
    assert {path: path.read_bytes() for path in run.iterdir() if path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }


def test_a_run_holds_its_folder_from_its_first_step(images, monkeypatch):
    found = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer, *rest):
            (folder,) = Path("trained_models/carp").iterdir()
            with another_process(says_whether_in_use, folder) as other:
                found.append(other.recv())
            trainer.should_stop = True

    callbacks = training.TrainingRun.callbacks
    monkeypatch.setattr(training.TrainingRun, "callbacks", lambda run: [Looks(), *callbacks(run)])
    pretrain(settings_of(images, max_epochs=1, limit_train_batches=1))
    assert found == [True]


def test_ranks_that_found_different_checkpoints_all_end():
    checkpointer = Checkpointer("a", Path("runs"), 1, False, {}, resumed=Path("runs/a-ep=1.ckpt"))
    for found_by_rank_0 in (None, "runs/a-ep=0.ckpt", "runs/a-ep=1.ckpt"):
        strategy = SimpleNamespace(
            broadcast=lambda own: found_by_rank_0,  # noqa: B023
            reduce_boolean_decision=lambda decision, all: decision,
        )
        trainer = SimpleNamespace(strategy=strategy, global_rank=1)
        if found_by_rank_0 == "runs/a-ep=1.ckpt":
            checkpointer.setup(trainer, None, "fit")
        else:
            with pytest.raises(UserError, match="found different checkpoints.*rank 1: runs/a-ep=1"):
                checkpointer.setup(trainer, None, "fit")


# ------------------------------------------------------------------------- a checkpoint asked for by name


def test_what_a_checkpoint_keeps_of_its_schedule_is_said(run, images, capsys):
    newest = str(next(run.glob("*-step=4.ckpt")))
    changes = {"optimizer__lr": 0.1, "scheduler__min_lr": 0.001, "max_epochs": 3}
    summary = pretrain(settings_of(images, resume_from_checkpoint=newest, **changes))
    (said,) = re.findall("warning: the schedule .*", capsys.readouterr().out)
    assert "optimizer.lr=0.3, scheduler.min_lr=0.0;" in said
    assert summary["steps"] == 3 * STEPS


def test_a_schedule_that_has_ended_never_climbs_back(run, images, monkeypatch, capsys):
    """Neither the rate nor tau, in a run of more epochs than its checkpoint was planned with, nor when that goes on."""
    newest = str(next(run.glob("*-step=4.ckpt")))
    changes = {"max_epochs": 4, "checkpoint__dir": "more"}
    settings = settings_of(images, resume_from_checkpoint=newest, **changes)
    stopped_at(monkeypatch, settings, "step", 3 * STEPS)
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "is of a run of other settings, and goes on with those of this one: max_epochs was 2, is 4."
        in out
    )
    assert (
        f"end at step {2 * STEPS} of {4 * STEPS}; " in out and f"initial_checkpoint={newest}" in out
    )
    summary = pretrain(settings_of(images, **changes))
    history = json.loads(Path(summary["checkpoint"]).with_name("metrics.json").read_text())
    assert [epoch["step"] for epoch in history] == [STEPS * i for i in (1, 2, 3, 4)]
    tau = [epoch["tau"] for epoch in history]
    assert tau == sorted(tau) and tau[2] == tau[3] == 1.0
    content = torch.load(summary["checkpoint"], weights_only=True)
    assert all(group["lr"] == 0 for group in content["optimizer_states"][0]["param_groups"][:-1])


def test_other_steps_or_another_order_within_an_epoch_are_refused(run, images):
    newest = next(run.glob("*-step=4.ckpt"))
    for changes, says in (
        (
            {"optimizer__batch_size": 4},
            r"steps of 8 images .*give optimizer.batch_size=8, or begin",
        ),
        ({"seed": 1}, "seed was 0, is 1: .* in another order.*give seed=0, or a checkpoint"),
    ):
        with pytest.raises(UserError, match=says):
            pretrain(settings_of(images, resume_from_checkpoint=str(newest), **changes))


def test_the_same_images_elsewhere_are_gone_on_with(run, images, whole, tmp_path, capsys):
    moved = Path(shutil.copytree(images, tmp_path / "job.123" / "images"))
    summary = pretrain(settings_of(moved, data__train_path=f"{moved}/train/"))
    assert "resuming from" in capsys.readouterr().out
    assert_same(everything(summary), whole())


def test_a_new_run_begins_with_the_weights_of_an_old_one(run, images, capsys):
    old = next(run.glob("*-ep=0.ckpt"))
    still = {"optimizer__lr": 0.0, "optimizer__classifier_lr": 0.0, "scheduler__name": "none"}
    still.update(momentum={"base_tau": 1.0, "final_tau": 1.0}, optimizer__weight_decay=0.0)
    changes = {**still, "max_epochs": 1, "evaluation": {"enabled": True, "k": 3}}
    summary = pretrain(settings_of(images, initial_checkpoint=str(old), **changes))
    assert summary["steps"] == STEPS and "given, before training" in capsys.readouterr().out
    then, now = (
        torch.load(path, weights_only=True)["state_dict"] for path in (old, summary["checkpoint"])
    )
    for name, tensor in then.items():
        if name.endswith(("weight", "bias", "prototypes")):
            assert torch.equal(tensor, now[name]), name


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"initial_checkpoint": "nowhere.ckpt"}, "initial_checkpoint=nowhere.ckpt does not exist"),
        ({"method_kwargs__num_prototypes": 64}, "is of another model: "),
    ],
)
def test_weights_that_cannot_be_begun_with_are_said(changes, says, run, images):
    old = str(next(run.glob("*-ep=0.ckpt")))
    with pytest.raises(UserError, match=says):
        pretrain(settings_of(images, **{"initial_checkpoint": old, **changes}))
    with pytest.raises(UserError, match="leave out one of them"):
        settings_of(images, initial_checkpoint=old, resume_from_checkpoint=old)


def test_one_of_another_optimizer_or_of_weights_alone_is_refused(run, images):
    newest = next(run.glob("*-step=4.ckpt"))
    settings = settings_of(images, resume_from_checkpoint=str(newest), optimizer__name="adamw")
    with pytest.raises(
        UserError, match="trained with optimizer.name=sgd, whose state adamw cannot"
    ):
        pretrain(settings)
    weights = Path("weights.ckpt")
    torch.save({"state_dict": torch.load(newest, weights_only=True)["state_dict"]}, weights)
    with pytest.raises(UserError, match="holds weights but no pytorch-lightning_version"):
        pretrain(settings_of(images, resume_from_checkpoint=str(weights)))


def test_the_last_step_is_saved_where_max_steps_ends_training(images):
    summary = pretrain(
        settings_of(images, checkpoint__frequency=10, max_epochs=9, max_steps=STEPS + 2)
    )
    assert everything(summary)["global_step"] == STEPS + 2


# ------------------------------------------------------------------------------------ a full disk


def test_a_full_disk_loses_no_earlier_checkpoint(images, whole, monkeypatch):
    save, written = AtomicCheckpointIO.__mro__[1].save_checkpoint, []

    def full(self, checkpoint, path, options=None):
        save(self, checkpoint, path, options)
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(AtomicCheckpointIO.__mro__[1], "save_checkpoint", full)
        with pytest.raises(UserError, match=r"ep=1.ckpt cannot be written .No space.*intact"):
            pretrain(settings_of(images))
    (left,) = Path("trained_models").rglob("*.ckpt*")
    assert left.name.endswith("ep=0.ckpt") and damage(left) is None
    assert_same(everything(pretrain(settings_of(images))), whole())
