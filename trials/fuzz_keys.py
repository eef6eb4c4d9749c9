"""The keys of a configuration by the kind of value that each has, and what a case of the fuzz is."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

#: Keys of a pretraining by the kind of value that they have.
KEYS: Dict[str, Sequence[str]] = {
    "whole": """max_epochs optimizer.batch_size data.num_workers seed num_nodes checkpoint.frequency
        method_kwargs.proj_hidden_dim method_kwargs.proj_output_dim method_kwargs.num_prototypes
        method_kwargs.partition_size evaluation.k evaluation.frequency knn_eval.k auto_umap.frequency
        augmentations.0.crop_size augmentations.0.num_crops data.eval_transform.crop_size
        data.eval_transform.resize min_epochs max_steps min_steps check_val_every_n_epoch
        num_sanity_val_steps log_every_n_steps accumulate_grad_batches
        reload_dataloaders_every_n_epochs""".split(),
    "number": """optimizer.lr optimizer.weight_decay optimizer.classifier_lr optimizer.kwargs.momentum
        scheduler.min_lr scheduler.warmup_start_lr scheduler.warmup_epochs auto_resume.max_hours
        method_kwargs.consistency_weight method_kwargs.entropy_weight momentum.base_tau
        momentum.final_tau data.fraction data.max_bad_fraction evaluation.temperature
        augmentations.0.rrc.crop_min_scale augmentations.0.rrc.crop_max_scale
        augmentations.0.color_jitter.prob augmentations.0.color_jitter.brightness
        augmentations.0.color_jitter.contrast augmentations.0.color_jitter.saturation
        augmentations.0.color_jitter.hue augmentations.0.grayscale.prob
        augmentations.0.gaussian_blur.prob augmentations.0.solarization.prob
        augmentations.0.equalization.prob augmentations.0.horizontal_flip.prob
        limit_train_batches limit_val_batches limit_test_batches limit_predict_batches overfit_batches
        val_check_interval gradient_clip_val""".split(),
    "switch": """checkpoint.enabled checkpoint.keep_prev auto_resume.enabled wandb.enabled
        wandb.offline performance.disable_channel_last data.no_labels
        optimizer.exclude_bias_n_norm_wd optimizer.kwargs.nesterov method_kwargs.normalize_prototypes
        method_kwargs.fused momentum.classifier auto_umap.enabled dali.encode_indexes_into_labels
        knn_eval.enabled evaluation.enabled collapse.enabled collapse.stop debug_augmentations
        augmentations.0.rrc.enabled fast_dev_run enable_progress_bar enable_model_summary benchmark
        inference_mode use_distributed_sampler detect_anomaly barebones sync_batchnorm
        enable_autolog_hparams""".split(),
    "word": """name method backbone.name data.dataset data.format data.train_path data.val_path
        data.prepare optimizer.name scheduler.name scheduler.interval checkpoint.dir wandb.entity
        wandb.project resume_from_checkpoint method_kwargs.partition method_kwargs.teacher_prototypes
        auto_umap.dir dali.device knn_eval.distance_func accelerator strategy max_time
        gradient_clip_algorithm profiler default_root_dir deterministic""".split(),
    "list": """augmentations scheduler.lr_decay_steps augmentations.0.mean
        augmentations.0.std""".split(),
    "node": """backbone optimizer scheduler checkpoint auto_resume wandb performance data
        data.eval_transform method_kwargs momentum auto_umap dali knn_eval evaluation collapse
        backbone.kwargs optimizer.kwargs augmentations.0 augmentations.0.rrc
        augmentations.0.color_jitter augmentations.0.grayscale augmentations.0.gaussian_blur
        augmentations.0.solarization augmentations.0.equalization
        augmentations.0.horizontal_flip""".split(),
    "own": ["devices", "precision"],
}


class Case(NamedTuple):
    """A command line, and what must become of it.

    Attributes:
        kind: its class.
        script: of the repository.
        arguments: of the script.
        fails: True where it must be refused, None where it may be legal.
        keys: of the configuration that it touches.
    """

    kind: str
    script: str
    arguments: List[str]
    fails: Optional[bool] = True
    keys: Sequence[str] = ()


class World(NamedTuple):
    """What a case may use, made once: folders and files that no case may change.

    Attributes:
        images: with ``train`` and ``val``.
        configs: with ``small.yaml`` and ``linear.yaml``.
        checkpoint: of a pretraining.
        broken: folder for files that cases write.
    """

    images: Path
    configs: Path
    checkpoint: Path
    broken: Path


def all_keys() -> List[str]:
    """Every key that some class knows."""
    return sorted(key for keys in KEYS.values() for key in keys)


#: Values of another kind, as Hydra reads them from the command line.
WRONG = {
    "whole": ["many", "[1,2]", "{a: 1}", "True", "1.5", "'8'", "''", "nan", "1e-3"],
    "number": ["many", "[1,2]", "{a: 1}", "True", "'0.1'", "''", "nan", "inf", "-inf"],
    "switch": ["maybe", "[True]", "{a: 1}", "7", "0.5", "''", "'yes'"],
    "word": ["[a,b]", "{a: 1}", "''", "True", "2.5"],
    "list": ["many", "{a: 1}", "7", "[[]]", "[many]", "[]"],
    "node": ["many", "[1,2]", "7", "True", "''"],
    "own": ["{a: 1}", "True", "''", "[]", "nan", "-7"],
}


def slip(dice: random.Random, word: str) -> str:
    """A word with a letter dropped, doubled, swapped or another."""
    at = dice.randrange(len(word))
    letter = dice.choice(string.ascii_lowercase)
    return dice.choice(
        [
            word[:at] + word[at + 1 :] + ("_" if len(word) == 1 else ""),
            word[:at] + letter + word[at:],
            word[:at] + word[at] * 2 + word[at + 1 :],
            word[:at] + letter.upper() + word[at + 1 :],
        ]
    )


def override(key: str, value: str) -> str:
    """An override that sets or adds a key; the entries of a list can only be set."""
    return f"{'' if key.startswith('augmentations.0') and not key.endswith(('mean', 'std')) else '++'}{key}={value}"
