"""What the value of every key may be: one table for all runs, and the sentence for a value that it may not.

A key that has a value of another kind would be found out deep inside the host or Lightning, by a stack trace, or never.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional

from omegaconf import DictConfig, ListConfig, OmegaConf

from carp_plugin.errors import UserError
from carp_plugin.host import omegaconf_select

_LARGEST = 1e30  # of a number that is to be computed with in float32
_CROP = 4096  # pixels; a larger view does not fit memory, and would be found out there


class Value(NamedTuple):
    """What a value is to be.

    Attributes:
        what: in words, after "must be".
        fits: whether a value is that.
    """

    what: str
    fits: Callable[[Any], bool]


def whole(low: int, high: Optional[int] = None) -> Value:
    """A whole number within [low, high]."""

    def fits(value: Any) -> bool:
        known = isinstance(value, int) and not isinstance(value, bool)
        return known and low <= value <= (2**62 if high is None else high)

    within = f"of at least {low}" if high is None else f"between {low} and {high}"
    return Value(f"a whole number {within}", fits)


def number(low: float, high: Optional[float] = None, without: Optional[float] = None) -> Value:
    """A finite number within [low, high], but for ``without``, an end of it."""

    def fits(value: Any) -> bool:
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        return known and low <= value <= (_LARGEST if high is None else high) and value != without

    if high is not None:
        within = f"between {low} and {high}"
        return Value(
            f"a number {within}" + (f", not {without}" if without is not None else ""), fits
        )
    return Value(f"a number above {low}" if low == without else f"a number of at least {low}", fits)


def choice(*names: str) -> Value:
    """One of a few words."""
    return Value("one of " + ", ".join(names), lambda value: value in names)


def either(*values: Value) -> Value:
    """What one of several takes."""
    what = " or ".join(value.what for value in values)
    return Value(what, lambda given: any(value.fits(given) for value in values))


def list_of(item: Value, length: Optional[int] = None) -> Value:
    """A list whose items are all alike."""

    def fits(value: Any) -> bool:
        if not isinstance(value, (list, tuple, ListConfig)) or length not in (None, len(value)):
            return False
        return len(value) > 0 and all(map(item.fits, value))

    return Value(f"a list of {f'{length} ' if length else ''}items, each {item.what}", fits)


def or_null(value: Value) -> Value:
    """A value that may be left empty."""
    return either(value, Value("null", lambda given: given is None or given == "None"))


SWITCH = Value("True or False", lambda value: isinstance(value, bool))
TEXT = Value(
    "a text (in quotes, if it looks like a number)",
    lambda value: isinstance(value, str) and value != "" and "\0" not in value,
)
NODE = Value("a node of keys and values", lambda value: isinstance(value, DictConfig))
FILE_NAME = Value(
    "a text that a file can be named after: at most 100 letters, and no slash among them",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[^/\\]{1,100}", value))
    and value.isprintable() and value not in (".", ".."),
)  # fmt: skip
_PROBABILITY = number(0, 1)
_PART = either(number(0, 1), whole(0))  # of batches: a fraction, or how many
_DEVICES = Value(
    "a number of devices, a list of their indexes, or auto",
    lambda value: isinstance(value, (str, ListConfig)) and not str(value).isdigit()
    or not isinstance(value, (bool, float, DictConfig))
    and re.fullmatch(r"-1|\d{1,4}", str(value)) is not None,
)  # fmt: skip

_SWITCHES_OF_OPTIMIZERS = (
    "nesterov clip_lr exclude_bias_n_norm amsgrad capturable decoupled_weight_decay differentiable foreach fused "
    "maximize"
)
_WHOLE_IN_METHODS = (
    "proj_hidden_dim proj_output_dim pred_hidden_dim kmeans_iters sk_iters whitening_size whitening_iters "
    "decoder_depth decoder_embed_dim decoder_num_heads"
)
_POSITIVE_IN_METHODS = (
    "temperature temperature_q temperature_k student_temperature teacher_temperature warmup_teacher_temperature "
    "scale_loss sk_epsilon"
)
_WEIGHTS_IN_METHODS = "lamb sim_loss_weight var_loss_weight cov_loss_weight clip_grad whitening_eps"
_STEPS = "grayscale gaussian_blur solarization equalization horizontal_flip"


def _each(node: str, keys: str, value: Value) -> Dict[str, Value]:
    return {f"{node}.{key}": value for key in keys.split()}


#: Keys of every training, the trainer's among them.
RUN: Dict[str, Value] = {
    "name": FILE_NAME,
    "backbone": NODE,
    "backbone.name": TEXT,
    "backbone.kwargs": or_null(NODE),
    "optimizer": NODE,
    "optimizer.name": TEXT,
    "optimizer.batch_size": whole(1),
    "optimizer.lr": number(0),
    "optimizer.weight_decay": number(0),
    "optimizer.exclude_bias_n_norm_wd": SWITCH,
    "optimizer.kwargs": or_null(NODE),
    "optimizer.kwargs.momentum": number(0, 1),
    "optimizer.kwargs.dampening": number(0, 1),
    "optimizer.kwargs.betas": list_of(number(0, 1, without=1), 2),
    "optimizer.kwargs.eps": number(0),
    "optimizer.kwargs.eta": number(0),
    **_each("optimizer.kwargs", _SWITCHES_OF_OPTIMIZERS, or_null(SWITCH)),
    "scheduler": NODE,
    "scheduler.name": TEXT,
    "scheduler.min_lr": number(0),
    "scheduler.warmup_start_lr": number(0),
    "scheduler.warmup_epochs": number(0),
    "scheduler.lr_decay_steps": or_null(list_of(whole(0))),
    "scheduler.interval": choice("step", "epoch"),
    "checkpoint": or_null(NODE),
    "checkpoint.enabled": SWITCH,
    "checkpoint.dir": TEXT,
    "checkpoint.frequency": whole(1),
    "checkpoint.keep_prev": SWITCH,
    "auto_resume": or_null(NODE),
    "auto_resume.enabled": SWITCH,
    "auto_resume.max_hours": number(0, 1e6),
    "wandb": or_null(NODE),
    "wandb.enabled": SWITCH,
    "wandb.entity": or_null(TEXT),
    "wandb.project": or_null(TEXT),
    "wandb.offline": SWITCH,
    "performance": or_null(NODE),
    "performance.disable_channel_last": SWITCH,
    "seed": or_null(whole(0, 2**32 - 1)),
    "resume_from_checkpoint": or_null(TEXT),
    "data": NODE,
    "data.dataset": TEXT,
    "data.train_path": TEXT,
    "data.val_path": or_null(TEXT),
    "data.format": TEXT,
    "data.num_workers": whole(0, 512),
    "data.fraction": either(Value("-1 for all", lambda v: v == -1), number(0, 1, without=1)),
    "data.prepare": or_null(TEXT),
    "data.max_bad_fraction": or_null(number(0, 0.5)),
    "data.eval_transform": or_null(NODE),
    "data.eval_transform.resize": or_null(whole(1, _CROP)),
    "data.eval_transform.crop_size": whole(1, _CROP),
    "dali": or_null(NODE),
    "dali.device": choice("cpu", "gpu"),
    # of Lightning's trainer
    "accelerator": choice("auto", "cpu", "gpu", "cuda"),
    "strategy": or_null(TEXT),
    "devices": _DEVICES,
    "num_nodes": whole(1, 10_000),
    "precision": or_null(either(TEXT, whole(1))),
    "fast_dev_run": SWITCH,
    "max_epochs": whole(1),
    "min_epochs": or_null(whole(1)),
    "max_steps": either(whole(1), Value("-1 for no limit", lambda value: value == -1)),
    "min_steps": or_null(whole(1)),
    "max_time": or_null(
        Value("a time as DD:HH:MM:SS", lambda v: bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(v))))
    ),
    "limit_train_batches": or_null(either(number(0, 1, without=0), whole(1))),
    "limit_val_batches": or_null(_PART),
    "limit_test_batches": or_null(_PART),
    "limit_predict_batches": or_null(_PART),
    "overfit_batches": Value(
        "0, for images come in an order of the run's own; limit_train_batches takes a part of them",
        lambda value: value == 0 and not isinstance(value, bool),
    ),
    "val_check_interval": or_null(either(number(0, 1, without=0), whole(1))),
    "check_val_every_n_epoch": or_null(whole(1)),
    "num_sanity_val_steps": or_null(whole(-1)),
    "log_every_n_steps": or_null(whole(1)),
    "enable_progress_bar": or_null(SWITCH),
    "enable_model_summary": or_null(SWITCH),
    "accumulate_grad_batches": or_null(whole(1)),
    "gradient_clip_val": or_null(number(0)),
    "gradient_clip_algorithm": or_null(choice("norm", "value")),
    "deterministic": or_null(either(SWITCH, choice("warn"))),
    "benchmark": or_null(SWITCH),
    "inference_mode": SWITCH,
    "use_distributed_sampler": SWITCH,
    "profiler": or_null(choice("simple", "advanced", "pytorch")),
    "detect_anomaly": SWITCH,
    "barebones": SWITCH,
    "sync_batchnorm": SWITCH,
    "reload_dataloaders_every_n_epochs": whole(0),
    "default_root_dir": or_null(TEXT),
    "enable_autolog_hparams": SWITCH,
}

#: Keys of pretraining; those of ``method_kwargs`` mean the same in every method of the host that has them.
PRETRAIN: Dict[str, Value] = {
    **RUN,
    "method": TEXT,
    "method_kwargs": or_null(NODE),
    **_each("method_kwargs", _WHOLE_IN_METHODS, whole(1)),
    "method_kwargs.num_prototypes": either(whole(1), list_of(whole(1))),
    "method_kwargs.queue_size": whole(0),
    "method_kwargs.epoch_queue_starts": whole(0),
    "method_kwargs.freeze_prototypes_epochs": whole(0),
    "method_kwargs.warmup_teacher_temperature_epochs": whole(0),
    **_each("method_kwargs", _POSITIVE_IN_METHODS, number(0, without=0)),
    **_each("method_kwargs", _WEIGHTS_IN_METHODS, number(0)),
    **_each(
        "method_kwargs", "iternorm norm_last_layer norm_pix_loss supervised use_bn_in_head", SWITCH
    ),
    "method_kwargs.freeze_last_layer": either(SWITCH, whole(0)),
    "method_kwargs.mask_ratio": _PROBABILITY,
    "momentum": or_null(NODE),
    "momentum.base_tau": number(0, 1),
    "momentum.final_tau": number(0, 1),
    "momentum.classifier": SWITCH,
    "optimizer.classifier_lr": number(0),
    "data.no_labels": SWITCH,
    "dali.encode_indexes_into_labels": SWITCH,
    "auto_umap": or_null(NODE),
    "auto_umap.enabled": SWITCH,
    "auto_umap.dir": TEXT,
    "auto_umap.frequency": whole(1),
    "knn_eval": or_null(NODE),
    "knn_eval.enabled": SWITCH,
    "knn_eval.k": whole(1),
    "knn_eval.distance_func": choice("cosine", "euclidean"),
    "evaluation": or_null(NODE),
    "evaluation.enabled": SWITCH,
    "evaluation.k": whole(1),
    "evaluation.temperature": number(0, without=0),
    "evaluation.frequency": whole(0),
    "collapse": or_null(NODE),
    "collapse.enabled": SWITCH,
    "collapse.stop": SWITCH,
    "debug_augmentations": SWITCH,
}

#: Keys of a pipeline of ``augmentations``.
AUGMENTATION: Dict[str, Value] = {
    "rrc": NODE,
    "rrc.enabled": SWITCH,
    "rrc.crop_min_scale": number(0, 1, without=0),
    "rrc.crop_max_scale": number(0, 1, without=0),
    "color_jitter": NODE,
    "color_jitter.prob": _PROBABILITY,
    "color_jitter.brightness": number(0),
    "color_jitter.contrast": number(0),
    "color_jitter.saturation": number(0),
    "color_jitter.hue": number(0, 0.5),
    **dict.fromkeys(_STEPS.split(), NODE),
    **dict.fromkeys((f"{step}.prob" for step in _STEPS.split()), _PROBABILITY),
    "crop_size": whole(1, _CROP),
    "num_crops": whole(1, 100),
    "mean": list_of(number(-_LARGEST, _LARGEST), 3),
    "std": list_of(number(0, without=0), 3),
}

#: Keys of a linear evaluation.
LINEAR: Dict[str, Value] = {
    **RUN,
    "pretrained_feature_extractor": TEXT,
    "pretrain_method": or_null(TEXT),
    "network": TEXT,
    "data.train_transform": or_null(NODE),
    "data.train_transform.crop_size": whole(1, _CROP),
    "data.train_transform.scale": or_null(list_of(number(0, 1), 2)),
}


def check_values(cfg: DictConfig, values: Mapping[str, Value], path: str = "") -> None:
    """Every value that is given is of its kind; keys that are left out, or missing (``???``), are no concern here.

    Args:
        cfg: a configuration, or a node of it.
        values: dotted keys of it.
        path: of the node, with a dot at its end.

    Raises:
        UserError: the first that is not, with what it must be.
    """
    for key, value in values.items():
        node, _, leaf = key.rpartition(".")
        parent = omegaconf_select(cfg, node) if node else cfg
        if not isinstance(parent, DictConfig) or leaf not in parent:
            continue
        if OmegaConf.is_missing(parent, leaf) or value.fits(parent[leaf]):
            continue
        given = repr(parent[leaf])
        given = given if len(given) <= 80 else f"{given[:80]}…"
        raise UserError(f"{path}{key} must be {value.what}, got {given}{_hint(parent[leaf])}.")


def _hint(value: Any) -> str:
    """YAML 1.1 reads 1e-6 as a word where a dot is missing; Hydra does not, other tools do."""
    return (
        " (a word, not a number)"
        if re.match(r"[-+]?\d", value if isinstance(value, str) else "")
        else ""
    )
