"""The collapse monitor on made runs, of which the answer is known, on real ones, and on other methods."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from carp_plugin.commands.pretrain import pretrain
from carp_plugin.errors import UserError
from carp_plugin.losses import assignment_statistics, carp_objective_func
from carp_plugin.partition import partition
from carp_plugin.training.callbacks.collapse import FEATURE_ROWS, CollapseMonitor, values_of
from carp_plugin.training.callbacks.history import History
from tests.helpers import image_folder, small_settings
from tests.run_cli import run_cli

K, IMAGES, STEPS = 64, 16, 5


class MadeRun(LightningModule):
    """A run whose embeddings are made up and go through CARP's loss; the prototypes are the axes of the space.

    Args:
        make: takes the step and the number of images and returns the logits (N, K) of a view.
        B: prototypes in a block.
        c: consistency weight.
        e: entropy weight.
    """

    def __init__(self, make, B=8, c=1.0, e=1.0):
        super().__init__()
        self.make, self.partition_size, self.num_prototypes = make, B, K
        self.consistency_weight, self.entropy_weight, self.partition = c, e, "random"
        self.batch_size = IMAGES
        self.classifier = torch.nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        feats = torch.randn(IMAGES, 8, generator=torch.Generator().manual_seed(batch_idx))
        self.classifier(feats)
        views = [self.make(self.global_step, IMAGES) + self.classifier.bias.sum() for _ in range(2)]
        permutation = partition("random", 0, self.global_step, K, "cpu")
        loss, terms = carp_objective_func(
            views,
            [view.detach() for view in views],
            torch.eye(K),
            torch.eye(K),
            permutation,
            self.partition_size,
            consistency_weight=self.consistency_weight,
            entropy_weight=self.entropy_weight,
        )
        statistics = assignment_statistics(views, torch.eye(K), permutation, self.partition_size)
        self.step_metrics = {
            "train_consistency": terms.consistency,
            "train_entropy_gap": terms.entropy_gap,
            "train_information": statistics.information,
        }
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(run, monitor, epochs=2, steps=STEPS, callbacks=()):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, *callbacks],
    )
    trainer.fit(run, DataLoader(torch.zeros(steps, 1)))
    return trainer


def uniform(step, images):
    return torch.zeros(images, K)


def one_hot(step, images):
    return torch.linspace(0, 1e4, K).expand(images, K)


def two_levels(step, images):
    """A constant output as `collapse_values` knows it: some logits high, the others 0."""
    logits = torch.zeros(K)
    logits[:: K // 16] = 3.5
    return logits.expand(images, K)


def healthy(step, images):
    """Each image its own logits, the same in both views but for noise."""
    own = 4 * torch.randn(images, K, generator=torch.Generator().manual_seed(step))
    return own + 0.3 * torch.randn(images, K)


def untrained(step, images):
    """Logits as small as those of a network before its first step."""
    return 0.3 * torch.randn(images, K, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("B, c, e", [(8, 1.0, 1.0), (16, 2.0, 0.5), (32, 0.5, 2.0), (K, 1.0, 1.0)])
@pytest.mark.parametrize(
    "make, kind",
    [
        (healthy, None),
        (untrained, None),
        (uniform, "uniform"),
        (one_hot, "one-hot"),
        (two_levels, "constant"),
    ],
)
def test_verdict_on_made_runs(make, kind, B, c, e):
    monitor = CollapseMonitor()
    run = MadeRun(make, B, c, e)
    train(run, monitor)
    if kind is None:
        assert monitor.signs == []
        return
    (sign,) = monitor.signs
    assert sign.startswith(f"{kind} assignments")
    value = getattr(values_of(run), kind.replace("-", "_"))
    seen = {key: float(value) for key, value in run.step_metrics.items()}
    if kind != "constant":  # made by hand, not at its cheapest
        assert seen["train_consistency"] == pytest.approx(value.consistency, abs=1e-4)
        assert seen["train_entropy_gap"] == pytest.approx(value.entropy_gap, abs=1e-4)
    assert f"{value.consistency:.2f} and {value.entropy_gap:.2f})" in sign


@pytest.mark.parametrize(
    "make, key",
    [
        (uniform, "entropy_weight (now 1)"),
        (one_hot, "entropy_weight (now 1)"),
        (two_levels, "optimizer.lr"),
    ],
)
def test_the_sentence_says_what_to_change(make, key):
    monitor = CollapseMonitor()
    train(MadeRun(make), monitor)
    (sign,) = monitor.signs
    assert key in sign and sign.endswith(".") and "\n" not in sign


def test_more_prototypes_in_a_block_than_images_are_named_where_a_constant_output_is_cheaper():
    monitor = CollapseMonitor()
    run = MadeRun(two_levels, B=K)
    run.batch_size = 2
    train(run, monitor)
    constant = values_of(run).constant.loss
    (sign,) = monitor.signs
    assert constant < math.log(K / 2)
    assert f"a constant output costs {constant:.2f}" in sign and f"{math.log(K / 2):.2f}" in sign


def test_a_kind_is_said_once_and_goes_when_it_is_over(capsys):
    monitor = CollapseMonitor()
    train(MadeRun(one_hot), monitor, epochs=3)
    assert capsys.readouterr().out.count("warning: collapse in epoch 0: one-hot") == 1
    recovered = MadeRun(lambda step, n: (one_hot if step < STEPS else healthy)(step, n))
    monitor = CollapseMonitor()
    train(recovered, monitor, epochs=2)
    assert monitor.signs == [] and "one-hot" in capsys.readouterr().out


def test_the_start_is_near_uniform_and_not_judged(capsys):
    monitor = CollapseMonitor()
    train(MadeRun(lambda step, n: (uniform if step < STEPS else healthy)(step, n)), monitor)
    assert monitor.signs == [] and "warning" not in capsys.readouterr().out


def test_the_end_of_an_epoch_is_judged_not_its_mean():
    """Three quarters of the epoch healthy, the last quarter collapsed; and the other way round."""
    falls = MadeRun(lambda step, n: (healthy if step % 8 < 6 else one_hot)(step, n))
    rises = MadeRun(lambda step, n: (one_hot if step % 8 < 6 else healthy)(step, n))
    for run, collapsed in ((falls, True), (rises, False)):
        monitor = CollapseMonitor()
        train(run, monitor, epochs=1, steps=8)
        assert bool(monitor.signs) == collapsed


def test_stop_ends_training_after_the_epoch():
    monitor = CollapseMonitor(stop=True)
    trainer = train(MadeRun(one_hot), monitor, epochs=5)
    assert (trainer.global_step, monitor.stopped) == (STEPS, True)
    monitor = CollapseMonitor(stop=True)
    assert train(MadeRun(healthy), monitor, epochs=2).global_step == 2 * STEPS
    assert not monitor.stopped


def test_state_continues_within_an_epoch_and_holds_plain_types_only(tmp_path, capsys):
    """What one monitor saw and another is given ends in the same verdict and metrics as one that saw it all."""
    whole, first, second = CollapseMonitor(), CollapseMonitor(), CollapseMonitor()
    run = MadeRun(one_hot)
    trainer = train(run, whole, epochs=1)
    capsys.readouterr()

    class Fake:
        is_global_zero, world_size, current_epoch, should_stop = True, 1, 0, False
        strategy, callback_metrics = trainer.strategy, {}

    for half, steps in ((first, range(3)), (second, range(3, STEPS))):
        if half is second:
            torch.save(first.state_dict(), tmp_path / "state")
            second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        half.on_train_start(Fake, run)
        for step in steps:
            half.on_train_batch_start(Fake, run, None, step)
            run.training_step(None, step)
            half.on_train_batch_end(Fake, run, None, None, step)
        half.on_train_end(Fake, run)
    logged = {}
    run.log_dict = lambda metrics, **_: logged.update(metrics)
    second.on_train_epoch_end(Fake, run)
    assert second.signs == whole.signs != []
    for key in ("train_feature_rank", "train_feature_rows"):
        assert logged[key] == pytest.approx(float(trainer.callback_metrics[key]), rel=1e-6)
    # said once: by whoever came to the end first
    third = CollapseMonitor()
    third.load_state_dict(second.state_dict())
    train(run, third, epochs=1)
    assert capsys.readouterr().out.count("warning: collapse") == 1


def test_rank_is_of_the_last_rows_of_the_epoch_and_of_one_view():
    class TwoViews(MadeRun):
        def training_step(self, batch, batch_idx):
            # the first view has directions that change with the step, the second one none
            directions = 2 if self.global_step < 8 else 5
            rows = torch.eye(8)[torch.arange(IMAGES * 8) % directions]
            self.classifier(rows)
            self.classifier(torch.ones(IMAGES * 8, 8))
            return super().training_step(batch, batch_idx)

    history = History()
    steps = 8 + math.ceil(FEATURE_ROWS / (IMAGES * 8))
    train(TwoViews(healthy), CollapseMonitor(), epochs=1, steps=steps, callbacks=[history])
    assert history.last["train_feature_rank"] == pytest.approx(5, rel=0.01)
    assert history.last["train_feature_rows"] == FEATURE_ROWS


# ------------------------------------------------------------------------------------ real runs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("method", ["carp", "simclr", "byol"])
def test_metrics_reach_history_and_summary_whatever_the_method(method, images):
    summary = pretrain(small_settings(images, method, max_epochs=1, evaluation={"enabled": False}))
    epochs = json.loads(Path(summary["checkpoint"]).with_name("metrics.json").read_text())
    for seen in (epochs[-1], summary["last_epoch"]):
        assert 1 <= seen["train_feature_rank"] <= seen["train_feature_rows"] == 24
        assert 0 < seen["train_z_std"] <= 16**-0.5 if method != "simclr" else seen["train_z_std"]
        assert ("train_prototypes_perplexity" in seen) == (method == "carp")
        assert seen.get("train_collapse") == (0 if method == "carp" else None)
    assert summary["signs_of_collapse"] == []
    state = torch.load(summary["checkpoint"], weights_only=True)["callbacks"]
    assert state["CollapseMonitor"]["steps"] == 0
    assert state["History"]["epochs"][-1]["train_feature_rank"] == epochs[-1]["train_feature_rank"]


def test_the_monitor_changes_nothing_and_can_be_left_out(images):
    weights = []
    for enabled in (True, False):
        summary = pretrain(
            small_settings(
                images, max_epochs=1, evaluation={"enabled": False}, collapse={"enabled": enabled}
            )
        )
        assert ("train_feature_rank" in summary["last_epoch"]) == enabled
        weights.append(torch.load(summary["checkpoint"], weights_only=True)["state_dict"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize(
    "node, says",
    [
        ({"stop": "yes"}, "collapse.stop must be True or False, got 'yes'"),
        ({"enabled": 1}, "collapse.enabled must be True or False, got 1"),
        ({"halt": True}, "collapse.halt is not a key.*choose from enabled, stop"),
        ({"enabled": False, "stop": True}, "needs the monitor"),
    ],
)
def test_bad_keys_are_one_sentence(node, says, images):
    with pytest.raises(UserError, match=says):
        small_settings(images, collapse=node)


@pytest.mark.slow
def test_a_real_collapse_is_caught_within_two_epochs_and_stopped(images):
    """All prototypes in one block, many more than rows in a batch; nothing else is helped along."""
    settings = small_settings(
        images,
        evaluation={"enabled": False},
        collapse={"stop": True},
        method_kwargs={
            "proj_hidden_dim": 64,
            "proj_output_dim": 64,
            "num_prototypes": 2048,
            "partition_size": 2048,
        },
        momentum={"base_tau": 0.0, "final_tau": 0.0},
        optimizer__name="adamw",
        optimizer__lr=0.096,  # x 8 / 256: 0.003
        max_epochs=20,
        limit_val_batches=0,
    )
    with pytest.raises(UserError, match=r"stopped after epoch \d+ of 20: constant assign") as error:
        pretrain(settings)
    assert "lower method_kwargs.partition_size (now 2048)" in str(error.value)
    (path,) = Path("trained_models").rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["signs_of_collapse"][0] in str(error.value)
    assert summary["last_epoch"]["train_collapse"] == 1
    last = Path(summary["checkpoint"])
    assert last.name.endswith(f"ep={summary['last_epoch']['epoch']}.ckpt") and last.is_file()


@pytest.mark.slow
def test_table_5s_last_column_on_photographs_and_the_same_run_in_small_blocks(capsys, monkeypatch):
    """trials/collapse.py: caught within two epochs, and the other run is left alone."""
    code, out, err = run_cli(capsys, monkeypatch, "trials/collapse.py", ["--json", "c.json"])
    assert code == 0, out + err
    runs = json.loads(Path("c.json").read_text())["runs"]
    assert 1 in [epoch["train_collapse"] for epoch in runs["one block"]["epochs"]]
    assert runs["one block"]["signs_of_collapse"][0].startswith("constant assignments")
    assert [epoch["train_collapse"] for epoch in runs["healthy"]["epochs"]] == [0, 0]
