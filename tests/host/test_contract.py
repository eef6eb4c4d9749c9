"""What the rest of the plugin relies on, asked of whichever solo-learn is installed."""

import importlib
import inspect
import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf

from carp_plugin import host
from carp_plugin.data import loaders
from carp_plugin.errors import UserError
from carp_plugin.host import HOST, METHODS
from carp_plugin.host.cfg import pretrain_cfg
from carp_plugin.methods.known import check_pretraining
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.data.built import labelled_loaders, training_loader
from tests.helpers import METHOD_KWARGS, augmentation, image_folder, small_settings

REQUIRED_METHODS = (
    "barlow_twins",
    "byol",
    "deepclusterv2",
    "mocov2plus",
    "simclr",
    "simsiam",
    "swav",
)
# Not for batches of two views: mae masks patches of one view of a ViT, base and linear are no methods.
OTHER = ("base", "linear", "mae")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


def built(settings):
    """The method, built by the host."""
    return build_model(settings, machine_of(settings))


def parsed(settings):
    """The host's configuration of a run on one CPU process."""
    return pretrain_cfg(settings.values(), "cpu", [0])


def trained(settings, steps=3):
    """The model before (state) and after real optimisation steps through Lightning."""
    check_pretraining(settings)
    seed_everything(0, verbose=False)
    model = built(settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = Trainer(
        max_epochs=settings.max_epochs,
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, training_loader(settings), labelled_loaders(settings)[1])
    return before, model, trainer


def test_host_says_what_it_is():
    assert HOST.kind in ("current", "pypi")
    assert HOST.version in str(HOST) and HOST.location in str(HOST)
    assert set(HOST.as_dict()) == {"kind", "version", "location", "commit"}


def test_vocabulary_is_the_same_on_both_hosts():
    """The two modules name the same things, whichever is importable here."""
    import ast
    from pathlib import Path

    folder = Path(host.__file__).parent
    names = []
    for file in ("current.py", "pypi/__init__.py"):
        tree = ast.parse((folder / file).read_text())
        assigned = [
            node
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        names.append(ast.literal_eval(assigned[0].value))
    assert names[0] == names[1]
    assert all(hasattr(host, name) for name in names[0])


def test_every_method_of_the_paper_is_there():
    assert set(REQUIRED_METHODS) <= set(METHODS)


def test_every_method_of_the_host_is_tested_here():
    assert set(METHODS) - set(OTHER) <= set(METHOD_KWARGS)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(OTHER)))
def test_method_is_built_from_a_cfg_and_takes_optimisation_steps(name, images):
    # two whole batches of 8 are enough for wmse's whitening of 8 in 4 dimensions
    # DeepCluster v2 has no assignments to learn from before its second epoch
    steps = 5 if name == "deepclusterv2" else 3
    before, model, trainer = trained(small_settings(images, name), steps)
    assert trainer.global_step == steps
    after = model.state_dict()
    moved = [key for key in before if key in after and not torch.equal(before[key], after[key])]
    assert any(key.startswith("backbone.") and key.endswith("weight") for key in moved)
    heads = ("classifier.",) if name == "supervised" else ("projector.", "head.")
    assert any(key.startswith(heads) for key in moved)
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert {"val_loss", "val_acc1"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("queue", [0, 8])
def test_swav_predicts_the_large_views_assignments_from_every_other_view(queue, images):
    """Two large and two small views; the queue keeps the large ones' embeddings, the newest first."""
    views = [augmentation(16, 2), augmentation(12, 2)]
    changes = {"augmentations": views, "method_kwargs.queue_size": queue, "max_epochs": 1}
    settings = small_settings(images, "swav", **changes)
    _, model, trainer = trained(settings, steps=1)
    batch = next(iter(training_loader(settings)))
    said = {}
    model.log = lambda name, value, **_: said.update({name: value})
    model.log_dict = lambda values, **_: None
    with torch.no_grad():
        z = [
            torch.nn.functional.normalize(model.projector(model.backbone(view)))
            for view in batch[1]
        ]
        scores = [model.prototypes(each) for each in z]
        terms = [
            -(model.get_assignments(scores[:2])[i] * (scores[j] / 0.1).log_softmax(1)).sum(1).mean()
            for i in (0, 1)
            for j in range(4)
            if i != j
        ]
    model.training_step(batch, 0)
    torch.testing.assert_close(said["train_swav_loss"], sum(terms) / 6, rtol=1e-5, atol=1e-6)
    if queue:
        torch.testing.assert_close(model.queue[:, :8], torch.stack(z[:2]), rtol=1e-4, atol=1e-5)


def test_checkpoints_carry_the_current_names_of_the_backbone(images):
    model = built(small_settings(images, "byol"))
    keys = model.state_dict().keys()
    assert any(key.startswith("backbone.") for key in keys)
    assert any(key.startswith("momentum_backbone.") for key in keys)
    assert not any("encoder." in key for key in keys)


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_every_optimizer_trains(name, images):
    kwargs = {"eta": 0.02, "clip_lr": True, "exclude_bias_n_norm": True} if name == "lars" else {}
    settings = small_settings(images, "byol", optimizer__name=name, optimizer__kwargs=kwargs)
    before, model, _ = trained(settings, steps=1)
    after = model.state_dict()["backbone.layer4.1.conv2.weight"]
    assert not torch.equal(before["backbone.layer4.1.conv2.weight"], after)


def test_lars_step_is_that_of_the_paper():
    """You et al. 2017, eq. 6: gradient and weight decay are scaled by eta |w| / (|g| + wd |w|)."""
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    bias = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = host.LARS(
        [weight, bias], lr=0.5, weight_decay=0.1, momentum=0.9, eta=0.01, exclude_bias_n_norm=True
    )
    w, v = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        weight.grad = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
        bias.grad = torch.tensor([1.0], dtype=torch.float64)
        optimizer.step()
        norm = w.norm()
        rate = 0.01 * norm / (1.0 + 0.1 * norm + 1e-8)
        v = 0.9 * v + rate * (torch.tensor([[0.6, 0.8]], dtype=torch.float64) + 0.1 * w)
        w = w - 0.5 * v
    assert torch.allclose(weight, w, rtol=1e-9)
    # one-dimensional: plain SGD with momentum 0.9 and no decay, 1 + 1.9 + 2.71 steps of 0.5
    assert bias.item() == pytest.approx(2.0 - 0.5 * (1 + 1.9 + 2.71), rel=1e-12)


def test_lars_evaluates_the_closure_before_it_rescales():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = host.LARS([weight], lr=1.0, weight_decay=0.0, eta=0.01)

    def closure():
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 7.0
    moved = torch.tensor([[3.0, 4.0]]) - 0.01 * 5.0 / math.sqrt(2.0)
    assert torch.allclose(weight, moved, atol=1e-6)


def test_schedule_warms_up_linearly_and_ends_at_min_lr():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = host.LinearWarmupCosineAnnealingLR(
        optimizer, warmup_epochs=5, max_epochs=25, warmup_start_lr=0.2, eta_min=0.1
    )
    seen = []
    for _ in range(25):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    seen.append(optimizer.param_groups[0]["lr"])
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * (s - 5) / 20)) / 2 for s in range(5, 26)]
    assert seen[5:] == pytest.approx(cosine)


def test_schedule_never_climbs_back_after_its_end():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = host.LinearWarmupCosineAnnealingLR(
        optimizer, warmup_epochs=3, max_epochs=10, warmup_start_lr=0.1, eta_min=0.01
    )
    rates = []
    for _ in range(40):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[9:] == pytest.approx([0.01] * 31) and min(rates[:8]) > 0.011


def test_learning_rate_follows_the_hosts_rule(images):
    """lr and classifier_lr times batch x devices / 256; min_lr as it is."""
    cfg = parsed(small_settings(images, optimizer__batch_size=12, scheduler__min_lr=0.06))
    assert cfg.optimizer.lr == pytest.approx(0.3 * 12 / 256)
    assert cfg.optimizer.classifier_lr == pytest.approx(0.3 * 12 / 256)
    assert cfg.scheduler.min_lr == 0.06


def test_views_are_counted_by_their_size(images):
    views = [augmentation(16, 2), augmentation(8, 3)]
    cfg = parsed(small_settings(images, augmentations=views))
    assert (cfg.data.num_large_crops, cfg.data.num_small_crops) == (2, 3)


def test_transform_gives_normalised_views_of_the_size_asked_for(images):
    from PIL import Image

    node = OmegaConf.create(
        {**augmentation(16, 1), "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    )
    for name in ("color_jitter", "grayscale", "gaussian_blur", "solarization", "horizontal_flip"):
        node[name].prob = 0.0
    transform = host.build_transform_pipeline("custom", node)
    view = transform(Image.new("RGB", (20, 20), (255, 255, 255)))
    assert view.shape == (3, 16, 16)
    assert torch.allclose(view, torch.full_like(view, 2.0))


def test_pretraining_data_gives_index_views_and_label(images):
    loader = training_loader(small_settings(images))
    indexes, views, labels = next(iter(loader))
    assert indexes.shape == (8,) and labels.shape == (8,)
    assert [tuple(view.shape) for view in views] == [(8, 3, 16, 16)] * 2
    assert len(loader) == 24 // 8


def test_flat_folder_without_labels(tmp_path, images):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((images / "train").rglob("*.png"))):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    settings = small_settings(
        images, data__train_path=str(flat), data__val_path=None, data__no_labels=True
    )
    _, views, labels = next(iter(training_loader(settings)))
    assert labels.eq(-1).all() and len(views) == 2
    assert loaders.labelled_loaders(settings.data, settings.augmentations[0], 8) is None


def test_a_fraction_of_the_data_is_stratified(images):
    named = training_loader(small_settings(images, data__fraction=0.5)).dataset.dataset
    dataset = named.dataset
    assert len(dataset) == 12
    counts = torch.bincount(torch.tensor([label for _, label in dataset.samples]))
    assert counts.tolist() == [2] * 6


def test_knn_weighs_cosine_neighbours():
    """Lengths do not matter, and near neighbours outvote a far majority."""
    classifier = host.WeightedKNNClassifier(k=3, T=0.07, distance_fx="cosine")
    bank = torch.tensor([[1.0, 0.0], [0.0, 9.0], [0.0, 8.0]])
    classifier.update(train_features=bank, train_targets=torch.tensor([0, 1, 1]))
    queries = torch.tensor([[5.0, 0.5], [0.1, 0.2]])
    classifier.update(test_features=queries, test_targets=torch.tensor([0, 1]))
    assert classifier.compute()[0] == 100.0


@pytest.mark.parametrize("knn", ["euclidean", "cosine"])
def test_knn_while_training_is_logged(knn, images):
    settings = small_settings(
        images, "byol", knn_eval={"enabled": True, "k": 3, "distance_func": knn}
    )
    _, _, trainer = trained(settings)
    assert 0 <= trainer.callback_metrics["val_knn_acc1"] <= 100


def test_linear_model_trains_the_classifier_only(images):
    settings = small_settings(images, "byol")
    backbone = built(settings).backbone
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    linear = OmegaConf.create(
        {
            "data": {"num_classes": 6},
            "max_epochs": 2,
            "optimizer": {"name": "sgd", "batch_size": 8, "lr": 0.1, "weight_decay": 0},
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0},
        }
    )
    model = host.LinearModel(backbone, linear)
    weight = model.classifier.weight.detach().clone()
    train, val = labelled_loaders(settings)
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, train, val)
    assert not torch.equal(weight, model.classifier.weight)
    after = model.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_method_kwargs_keys_are_known(images):
    assert {"proj_hidden_dim", "proj_output_dim", "pred_hidden_dim"} <= host.method_keys("byol")
    with pytest.raises(UserError, match="pred_hiden_dim.*did you mean 'pred_hidden_dim'"):
        check_pretraining(small_settings(images, "byol", method_kwargs__pred_hiden_dim=3))


def test_momentum_updater_follows_the_cosine():
    updater = host.MomentumUpdater(0.9, 1.0)
    online, momentum = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    host.initialize_momentum_params(online, momentum)
    assert torch.equal(online.weight, momentum.weight) and not momentum.weight.requires_grad
    with torch.no_grad():
        start = online.weight.clone()
        online.weight += 1
    updater.update(online, momentum)
    assert torch.allclose(momentum.weight, start + 0.1, atol=1e-6)
    updater.update_tau(cur_step=5, max_steps=10)
    assert updater.cur_tau == pytest.approx(0.95)


@pytest.mark.skipif(
    HOST.kind == "pypi", reason="the script of solo-learn 1.0.2 takes no configuration"
)
def test_resumer_of_the_checkouts_script_compares_what_makes_runs_different():
    resumer = importlib.import_module("carp_plugin.host.current").AutoResumer
    assert {"method_kwargs", "seed", "data.train_path"} <= set(resumer.SHOULD_MATCH)


def test_base_classes_are_written_against_a_cfg():
    for base in (host.BaseMethod, host.BaseMomentumMethod):
        assert "cfg" in inspect.signature(base.__init__).parameters
