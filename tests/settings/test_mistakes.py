"""The sentence that a mistake in the settings earns: which of several, where it is, and what was expected."""

import pytest
from omegaconf import OmegaConf

from carp_plugin.errors import UserError
from carp_plugin.settings.comparison import read_comparison
from carp_plugin.settings.flags import read_flags
from carp_plugin.settings.linear import read_linear
from carp_plugin.settings.offline import Knn
from carp_plugin.settings.parts import CarpKwargs
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain, read
from tests.helpers import small_cfg
from tests.linear_helpers import linear_cfg


def said_of(tmp_path, **changes):
    with pytest.raises(UserError) as caught:
        read_pretraining(plain(small_cfg(tmp_path, **changes)))
    return str(caught.value)


# (changes, the whole sentence)
SENTENCES = [
    ({"max_epoch": 3}, "max_epoch is not a key of the configuration; did you mean 'max_epochs' or 'min_epochs'?"),
    (
        {"optimizer__learning_rate": 1},
        "optimizer.learning_rate is not a key of the configuration; choose from batch_size, classifier_lr, "
        "exclude_bias_n_norm_wd, kwargs, lr, name, weight_decay",
    ),
    (
        {"method_kwargs__n_prototypes": 8},
        "method_kwargs.n_prototypes is not a key of carp; did you mean 'num_prototypes' or 'normalize_prototypes'?",
    ),
    (
        {"optimizer__lr": "???"},
        "optimizer.lr is missing from the configuration; add it to the yaml file or as optimizer.lr=VALUE.",
    ),
    (
        {"optimizer__lr": None},
        "optimizer.lr is missing from the configuration; add it to the yaml file or as optimizer.lr=VALUE.",
    ),
    ({"optimizer__batch_size": "many"}, "optimizer.batch_size must be a whole number of at least 1, got 'many'."),
    (
        {"optimizer__weight_decay": "1e-6"},
        "optimizer.weight_decay must be a number of at least 0, got '1e-6' (a word, not a number).",
    ),
    ({"max_epochs": 0}, "max_epochs must be a whole number of at least 1, got 0."),
    ({"optimizer__lr": float("nan")}, "optimizer.lr must be a number of at least 0, got nan."),
    ({"data__dataset": "imagenet1k"}, "data.dataset=imagenet1k is unknown; did you mean 'imagenet' or 'imagenet100'?"),
    ({"scheduler__interval": "batch"}, "scheduler.interval=batch is unknown; choose from epoch, step"),
    (
        {"data__dataset": "fashion_mnist", "data__format": "dali"},
        "data.format=dali does not read fashion_mnist; set data.format=image_folder.",
    ),
    (
        {"data__prepare": "download"},
        "data.prepare=download is for fashion_mnist, not custom; set data.prepare=null.",
    ),
    (
        {"data__train_images": 8, "data__format": "h5"},
        "data.train_images cannot be drawn from an HDF5 file, which does not tell the classes of its images before "
        "they are read; set data.format=image_folder.",
    ),
    (
        {"data__holdout": {"fraction": 0.5}, "data__val_path": None},
        "data.holdout takes the place of labelled validation images, and this run has none; give data.val_path (its "
        "images are not read then) and leave data.no_labels=False.",
    ),
    (
        {"data__val_images": 8, "data__val_path": None},
        "data.val_images has no validation images to draw from; give data.val_path as well.",
    ),
    ({"checkpoint": 7}, "checkpoint must hold keys (enabled, dir, frequency, keep_prev), got 7."),
    (
        {"optimizer__kwargs": {"betas": [0.9]}},
        "optimizer.kwargs.betas must be a list of 2 items, each a number between 0 and 1, not 1, got [0.9].",
    ),
    (
        {"momentum__base_tau": 0.99, "momentum__final_tau": 0.9},
        "momentum.base_tau=0.99 is above momentum.final_tau=0.9: the teacher's tau grows; for a siamese run set both "
        "to 0.",
    ),
    (
        {"method_kwargs__num_prototypes": 33},
        "method_kwargs.num_prototypes=33 must be a multiple of method_kwargs.partition_size=8: blocks are equal; use "
        "32 or 40 prototypes, or another block size.",
    ),
    (
        {"collapse": {"enabled": False, "stop": True}},
        "collapse.stop=True needs the monitor, which collapse.enabled=False switches off; leave out one of them.",
    ),
    ({"scheduler__name": "step"}, "scheduler.name=step needs scheduler.lr_decay_steps, a list of epochs."),
    (
        {"data__eval_transform": {"resize": 4, "crop_size": 8}},
        "data.eval_transform.resize=4 is smaller than data.eval_transform.crop_size=8, which would pad images with "
        "black; give at least as many pixels, or null to leave images at their size.",
    ),
    (
        {"augmentations": 7},
        "augmentations must be a list of pipelines; see carp_plugin/configs/views, of which views=NAME takes one.",
    ),
    ({"name": "x" * 500}, f"name must be a text that a file can be named after: at most 100 letters, and no slash "
                          f"among them, got '{'x' * 79}…."),
]  # fmt: skip


@pytest.mark.parametrize("changes, sentence", SENTENCES, ids=[str(s[0])[:60] for s in SENTENCES])
def test_a_mistake_is_one_whole_sentence(changes, sentence, tmp_path):
    assert said_of(tmp_path, **changes) == sentence


# (path of a pipeline, value, the sentence)
PIPELINE = [
    ("rrc.crop_min_scale", 2, "augmentations[0].rrc.crop_min_scale must be a number between 0 and 1, not 0, got 2."),
    ("rrc", 7, "augmentations[0].rrc must hold keys (enabled, crop_min_scale, crop_max_scale), got 7."),
    ("rrc.crop_max_scale", 0.1, "augmentations[0].rrc: expected crop_min_scale <= crop_max_scale, got 0.5 and 0.1."),
    ("mean", [1, 2], "augmentations[0].mean must be a list of 3 items, each a number or null, got [1, 2]."),
    ("colour", 1, "augmentations[0].colour is not a key of the configuration; choose from color_jitter, "),
    ("hue", 1, "augmentations[0].hue is not a key of the configuration; choose from color_jitter, "),
    ("num_crops", 1, "carp needs 2 large views, but the augmentations make 1 of 16 pixels (views as large as the "),
    ("rrc", None, "augmentations[0].rrc is missing; see carp_plugin/configs/views for whole pipelines."),
]  # fmt: skip


@pytest.mark.parametrize(
    "path, value, sentence", PIPELINE, ids=[f"{p[0]}={p[1]}" for p in PIPELINE]
)
def test_a_mistake_in_a_pipeline_says_in_which(path, value, sentence, tmp_path):
    cfg = small_cfg(tmp_path)
    OmegaConf.update(cfg.augmentations[0], path, value, force_add=True)
    with pytest.raises(UserError) as caught:
        read_pretraining(plain(cfg))
    assert str(caught.value).startswith(sentence)


def test_of_several_mistakes_the_slip_is_said_first_then_what_is_missing(tmp_path):
    changes = {"optimizer__lr": "???", "max_epochs": 0, "max_epoch": 5}
    assert said_of(tmp_path, **changes).startswith("max_epoch is not a key")
    del changes["max_epoch"]
    assert said_of(tmp_path, **changes).startswith("optimizer.lr is missing")
    del changes["optimizer__lr"]
    assert said_of(tmp_path, **changes).startswith("max_epochs must be")


def test_a_linear_evaluation_says_which_checkpoint_is_meant(tmp_path):
    values = plain(linear_cfg(tmp_path, tmp_path))
    del values["pretrained_feature_extractor"]
    with pytest.raises(UserError, match="pretrained_feature_extractor is missing: add .*=PATH"):
        read_linear(values)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", 64])
def test_a_frozen_backbone_is_not_converted(precision, tmp_path):
    values = plain(linear_cfg(tmp_path, tmp_path, precision=precision))
    with pytest.raises(
        UserError, match=f"^precision={precision} would convert the frozen backbone"
    ):
        read_linear(values)


def test_keys_of_a_part_are_named_by_their_whole_place():
    with pytest.raises(UserError, match=r"^method_kwargs.partition=rndom is unknown; did you mean"):
        read(CarpKwargs, {"partition": "rndom"}, within="method_kwargs.")
    with pytest.raises(UserError, match=r"^method_kwargs.n is not a key of carp"):
        read(CarpKwargs, {"n": 1}, within="method_kwargs.")
    with pytest.raises(
        UserError, match=r"^method_kwargs.num_prototypes=7 must be a multiple of method"
    ):
        read(CarpKwargs, {"num_prototypes": 7}, within="method_kwargs.")


COMPARISONS = [
    ({"methods": ["carp", "carp"]}, r"methods=\['carp', 'carp'\] names one of them twice"),
    ({"seeds": [0, 0]}, r"seeds=\[0, 0\] names one of them twice"),
    (
        {"knn": {"features": ["projector"]}},
        r"knn.features must be \[backbone\] or \[backbone,projector\]",
    ),
    (
        {"knn": {"features": ["head"]}},
        r"knn.features must be a list of items, each one of backbone",
    ),
    (
        {"holdout": {"fraction": 1, "seed": 0}},
        r"holdout.fraction must be a number between 0 and 1, not 0 and not 1, got 1",
    ),
    ({"trials": {"carp": [{"optimizer.lr": 1}]}, "methods": ["carp", "byol"]}, r"carp: 1, byol: 0"),
    ({"trials": {"carp": [{"optimizer.lr": 1}]}, "methods": ["carp"]}, r"add holdout.fraction"),
    ({"trials": {"carp": 3}}, r"trials"),
    ({"settings": {"carp": 7}}, r"settings must be a node"),
    ({"method": "carp"}, r"method is not a key of a comparison, .*methods=\[carp,byol\]"),
    ({"seed": 3}, r"seed is not a key of a comparison, .*seeds=\[0,1\]"),
    ({"keep_checkpoint": True}, r"keep_checkpoint is not a key.*did you mean 'keep_checkpoints'"),
    ({"max_epoch": 3}, r"max_epoch is not a key.*did you mean 'max_epochs'"),
    ({"name": "???"}, r"name is missing"),
]


@pytest.mark.parametrize("values, says", COMPARISONS, ids=[str(c[0])[:50] for c in COMPARISONS])
def test_a_mistake_in_a_comparison(values, says):
    with pytest.raises(UserError, match=says):
        read_comparison({"name": "test", **values})


FLAGS = [
    (["--k", "0"], "--k must be a whole number of at least 1, got 0."),
    (["--k", "5", "-1"], "--k must be a whole number of at least 1, got -1."),
    (["--temperature", "nan"], "--temperature must be a number above 0, got nan."),
    (["--batch_size", "0"], "--batch_size must be a whole number of at least 1, got 0."),
    (["--networks", "pupil"], "argument --networks: invalid choice: 'pupil'"),
    (["--json"], "argument --json: expected one argument; see main_knn.py --help."),
    (["--kk", "1"], "--kk is not a flag of main_knn.py; did you mean '--k'?"),
]


@pytest.mark.parametrize("flags, says", FLAGS, ids=[" ".join(f[0]) for f in FLAGS])
def test_a_mistake_in_a_flag_is_said_in_the_words_of_the_flags(flags, says):
    given = ["--pretrained_checkpoint_dir", "x", *flags]
    with pytest.raises(UserError) as caught:
        read_flags(Knn, given, "main_knn.py", "about")
    assert str(caught.value).startswith(says)


def test_a_checkpoint_must_be_named():
    with pytest.raises(UserError, match="required: --pretrained_checkpoint_dir"):
        read_flags(Knn, [], "main_knn.py", "about")
