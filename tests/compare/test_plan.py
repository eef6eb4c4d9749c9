"""What a comparison consists of: the same budget for all, each method's own settings, and mistakes in sentences."""

import pytest

from carp_plugin.compare.plan import plan
from carp_plugin.data.used import training_listing, validation_listing
from carp_plugin.errors import UserError
from carp_plugin.settings.comparison import read_comparison
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain
from tests.compare.configs import asked, comparison
from tests.helpers import image_folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=8)


TRIALS = {
    "carp": [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}],
    "simsiam": [{"optimizer.lr": 0.3}, {"method_kwargs.pred_hidden_dim": 4}],
}


def test_every_method_with_every_seed(images):
    jobs = plan(asked(images, seeds=[0, 3])).jobs
    assert [job.name for job in jobs] == [
        "carp-seed0",
        "simsiam-seed0",
        "carp-seed3",
        "simsiam-seed3",
    ]
    assert [job.settings["pretrain"]["seed"] for job in jobs] == [0, 0, 3, 3]


def test_runs_differ_in_nothing_but_the_method(images):
    first, second = (job.settings["pretrain"] for job in plan(asked(images)).jobs)
    own = {"name", "method", "method_kwargs"}
    assert {key for key in first if first[key] != second[key]} == own
    assert first["method_kwargs"]["num_prototypes"] == 32


def test_a_method_may_have_an_optimizer_of_its_own(images):
    wanted = asked(images, settings__simsiam__optimizer={"lr": 0.05})
    carp, simsiam = (job.settings["pretrain"]["optimizer"] for job in plan(wanted).jobs)
    assert simsiam == {**carp, "lr": 0.05}


def test_only_carp_has_a_gallery(images):
    carp, simsiam = plan(asked(images)).jobs
    assert (
        carp.settings["gallery"] == {"rows": 3, "columns": 4}
        and simsiam.settings["gallery"] is None
    )


def variants(**settings):
    """Variants of carp, by their settings."""
    return {label: {"method": "carp", "settings": own} for label, own in settings.items()}


def test_a_variant_has_the_settings_of_its_method_and_its_own(images):
    given = variants(few={"method_kwargs.num_prototypes": 8}, long={"max_epochs": 3})
    found = plan(asked(images, variants=given))
    assert [job.label for job in found.jobs] == ["carp", "simsiam", "few", "long"]
    carp, _, few, long = (job.settings["pretrain"] for job in found.jobs)
    assert few["method_kwargs"] == {**carp["method_kwargs"], "num_prototypes": 8}
    assert few["name"] == "few" and few["method"] == "carp" and few["momentum"] == carp["momentum"]
    assert {key for key in carp if carp[key] != long[key]} == {"name", "max_epochs"}


def test_of_several_rows_of_carp_the_first_has_the_gallery_and_the_first_of_all_the_labels_alone(
    images,
):
    finetune = {
        "max_epochs": 1,
        "labels": {"fraction": 0.5},
        "data": {"num_workers": 0, "format": "image_folder"},
        "optimizer": {"batch_size": 8, "lr": 0.01, "classifier_lr": 0.5},
        "scheduler": {"lr_decay_steps": [1]},
    }
    wanted = asked(images, ["simsiam"], variants=variants(one={}, two={}), finetune=finetune)
    settings = [job.settings for job in plan(wanted).jobs]
    assert [one["gallery"] is not None for one in settings] == [False, True, False]
    assert [one["finetune"]["labels_alone"] for one in settings] == [True, False, False]


def test_a_search_has_a_run_for_every_trial_and_never_sees_the_reported_images(images):
    jobs = plan(asked(images, trials=TRIALS, holdout={"fraction": 0.25, "seed": 0})).jobs
    assert [job.label for job in jobs] == ["carp-0", "carp-1", "simsiam-0", "simsiam-1"]
    assert [job.settings["pretrain"]["optimizer"]["lr"] for job in jobs] == [0.1, 0.2, 0.3, 0.3]
    assert jobs[3].settings["pretrain"]["method_kwargs"]["pred_hidden_dim"] == 4
    for job in jobs:
        data = read_pretraining(job.settings["pretrain"]).data
        train, val = (
            {path for path, _ in listing(data).samples}
            for listing in (training_listing, validation_listing)
        )
        assert (len(train), len(val)) == (36, 12) and not train & val
        assert all(path.startswith(str(images / "train")) for path in train | val)


MISTAKES = {
    "unknown method": (
        {"methods": ["carp", "simsiamm"]},
        "methods: simsiamm is unknown; did you mean 'simsiam'",
    ),
    "a method twice": ({"methods": ["carp", "carp"]}, "names one of them twice"),
    "no method": ({"methods": []}, "methods and variants are both empty; give methods=[carp,byol]"),
    "methods without brackets": ({"methods": "carp"}, "methods must be a list"),
    "seed of the wrong type": (
        {"seeds": ["one"]},
        "seeds must be a list of items, each a whole number between 0 and 4294967295, got [",
    ),
    "settings of nobody": (
        {"settings__byoll": {}},
        "settings.byoll: unknown method; did you mean 'byol'",
    ),
    "a typo in settings": (
        {"settings__simsiam__method_kwargs__pred_hiden_dim": 8},
        "method_kwargs.pred_hiden_dim is not a key of simsiam; did you mean 'pred_hidden_dim'",
    ),
    "a variant of an unknown method": (
        {"variants": {"a": {"method": "crap"}}},
        "variants.a.method: crap is unknown; did you mean 'carp'",
    ),
    "a typo in a variant": (
        {"variants": variants(a={"max_epoch": 3})},
        "max_epoch is not a key of the configuration; did you mean 'max_epochs'",
    ),
    "a variant of other images": (
        {"variants": variants(a={"data": {"val_path": "elsewhere"}})},
        "a would be measured otherwise than the first row (data.val_path is elsewhere, there",
    ),
    "a typo in a shared key": ({"max_epoch": 3}, "max_epoch is not a key of the configuration"),
    "no jobs": ({"jobs": 0}, "jobs must be a whole number between 1 and 512, got 0"),
    "half a k": (
        {"knn__k": [1.5]},
        "knn.k must be a list of items, each a whole number of at least 1",
    ),
    "no features of the backbone": ({"knn__features": ["projector"]}, "knn.features must be"),
    "missing data": ({"data__train_path": "nowhere"}, "data.train_path=nowhere does not exist"),
    "unequal trials": (
        {"trials": {**TRIALS, "carp": []}, "holdout": {"fraction": 0.25, "seed": 0}},
        "trials must have the same number for every method, got carp: 0, simsiam: 2",
    ),
    "a search on the reported images": (
        {"trials": TRIALS},
        "must not see the images that are reported",
    ),
    "the whole held out": (
        {"trials": TRIALS, "holdout": {"fraction": 1, "seed": 0}},
        "holdout.fraction must be a number between 0 and 1, not 0 and not 1, got 1",
    ),
    "a typo in a trial": (
        {
            "trials": {**TRIALS, "carp": [{"optimizer.lrr": 1}, {}]},
            "holdout": {"fraction": 0.25, "seed": 0},
        },
        "optimizer.lrr is not a key of the configuration; did you mean 'lr'",
    ),
    "unlabelled data": (
        {"data__no_labels": True},
        "needs labelled images; set data.no_labels=False",
    ),
    "no name": ({"name": "???"}, "name is missing"),
    "an empty name": ({"name": ""}, "name must be a text that a file can be named after"),
    "k above the bank": (
        {"knn__k": [60, 100]},
        "knn.k=[60, 100] are more than the 48 training images; give smaller ones",
    ),
    "no validation images": ({"data__val_path": None}, "needs labelled images"),
}


def test_a_number_of_neighbours_above_the_bank_is_left_out_and_said(images, capsys):
    """Where another one fits: a recipe's list serves small data too."""
    found = plan(read_comparison(plain(comparison(images, knn__k=[5, 100]))))
    assert found.settings.knn.k == (5,) and found.jobs[0].settings["knn"]["k"] == [5]
    assert "k = 100 left out, for there are 48 training images" in capsys.readouterr().out


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_before_anything_runs(images, mistake, tmp_path):
    changes, sentence = MISTAKES[mistake]
    with pytest.raises(UserError) as raised:
        cfg = comparison(images, **{k: v for k, v in changes.items() if k != "methods"})
        cfg.methods = changes.get("methods", cfg.methods)
        plan(read_comparison(plain(cfg)))
    assert sentence in str(raised.value)
    assert not (tmp_path / "results" / "tiny" / "runs").exists()
