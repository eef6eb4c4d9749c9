"""The keys of every command by the kind of value that each has, and what a case of the fuzz is."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

#: Keys of a pretraining by the kind of value that they have.
KEYS: Dict[str, Sequence[str]] = {
    "whole": """max_epochs optimizer.batch_size data.num_workers data.max_pixels data.train_images
        data.val_images data.subset_seed data.holdout.seed seed num_nodes checkpoint.frequency
        method_kwargs.proj_hidden_dim method_kwargs.proj_output_dim method_kwargs.num_prototypes
        method_kwargs.partition_size evaluation.k evaluation.frequency knn_eval.k auto_umap.frequency
        augmentations.0.crop_size augmentations.0.num_crops data.eval_transform.crop_size
        data.eval_transform.resize min_epochs max_steps min_steps check_val_every_n_epoch
        num_sanity_val_steps log_every_n_steps accumulate_grad_batches
        reload_dataloaders_every_n_epochs""".split(),
    "number": """optimizer.lr optimizer.weight_decay optimizer.classifier_lr optimizer.kwargs.momentum
        scheduler.min_lr scheduler.warmup_start_lr scheduler.warmup_epochs auto_resume.max_hours
        method_kwargs.consistency_weight method_kwargs.entropy_weight momentum.base_tau
        momentum.final_tau data.fraction data.holdout.fraction data.max_bad_fraction evaluation.temperature
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
        method_kwargs.fused method_kwargs.products momentum.classifier auto_umap.enabled dali.encode_indexes_into_labels
        knn_eval.enabled evaluation.enabled collapse.enabled collapse.stop debug_augmentations
        augmentations.0.rrc.enabled fast_dev_run enable_progress_bar enable_model_summary benchmark
        inference_mode use_distributed_sampler detect_anomaly barebones sync_batchnorm
        enable_autolog_hparams""".split(),
    "word": """name method backbone.name data.dataset data.format data.prepare optimizer.name
        scheduler.name scheduler.interval wandb.entity wandb.project method_kwargs.partition
        method_kwargs.teacher_prototypes dali.device knn_eval.distance_func accelerator strategy max_time
        gradient_clip_algorithm profiler deterministic""".split(),
    # whatever is typed is a path, so that only one without a letter is none
    "path": """data.train_path data.val_path checkpoint.dir resume_from_checkpoint initial_checkpoint auto_umap.dir
        default_root_dir""".split(),
    "list": """augmentations scheduler.lr_decay_steps augmentations.0.mean
        augmentations.0.std""".split(),
    "node": """backbone optimizer scheduler checkpoint auto_resume wandb performance data
        data.eval_transform data.holdout method_kwargs momentum auto_umap dali knn_eval evaluation collapse
        backbone.kwargs optimizer.kwargs augmentations.0 augmentations.0.rrc
        augmentations.0.color_jitter augmentations.0.grayscale augmentations.0.gaussian_blur
        augmentations.0.solarization augmentations.0.equalization
        augmentations.0.horizontal_flip""".split(),
    "own": ["devices", "precision"],
}


#: Further settings of optimizers, and those of other methods, the host's and ours, likewise.
KWARGS: Dict[str, Sequence[str]] = {
    "number": """optimizer.kwargs.dampening optimizer.kwargs.eta optimizer.kwargs.eps
        method_kwargs.sk_epsilon method_kwargs.temperature method_kwargs.temperature_q
        method_kwargs.temperature_k method_kwargs.student_temperature method_kwargs.teacher_temperature
        method_kwargs.warmup_teacher_temperature method_kwargs.clip_grad method_kwargs.lamb
        method_kwargs.scale_loss method_kwargs.sim_loss_weight method_kwargs.var_loss_weight
        method_kwargs.cov_loss_weight method_kwargs.whitening_eps method_kwargs.mask_ratio method_kwargs.epsilon
        method_kwargs.sinkhorn_tolerance method_kwargs.prototype_weight
        method_kwargs.first_entropy_weight method_kwargs.entropy_epochs method_kwargs.jigsaw_min_scale
        method_kwargs.patch_weight method_kwargs.memory_momentum method_kwargs.beta
        augmentations.0.rand_augment.magnitude_std""".split(),
    "switch": """optimizer.kwargs.clip_lr optimizer.kwargs.exclude_bias_n_norm optimizer.kwargs.amsgrad
        optimizer.kwargs.decoupled_weight_decay optimizer.kwargs.maximize optimizer.kwargs.foreach
        optimizer.kwargs.fused optimizer.kwargs.capturable optimizer.kwargs.differentiable
        method_kwargs.norm_last_layer method_kwargs.use_bn_in_head method_kwargs.iternorm
        method_kwargs.supervised method_kwargs.norm_pix_loss method_kwargs.proj_batch_norm
        method_kwargs.shared_negatives method_kwargs.symmetric""".split(),
    "word": ["method_kwargs.head", "method_kwargs.loss", "method_kwargs.labels"],
    "node": ["augmentations.0.rand_augment"],
    "list": ["optimizer.kwargs.betas", "method_kwargs.num_clusters"],
    "whole": """method_kwargs.pred_hidden_dim method_kwargs.queue_size method_kwargs.epoch_queue_starts
        method_kwargs.freeze_prototypes_epochs method_kwargs.kmeans_iters method_kwargs.sk_iters
        method_kwargs.warmup_teacher_temperature_epochs method_kwargs.whitening_size
        method_kwargs.whitening_iters method_kwargs.decoder_embed_dim method_kwargs.decoder_depth
        method_kwargs.decoder_num_heads method_kwargs.proj_layers
        method_kwargs.sinkhorn_iterations method_kwargs.num_negatives
        method_kwargs.epoch_prototypes_start method_kwargs.kmeans_iterations method_kwargs.kmeans_redo
        method_kwargs.jigsaw_size method_kwargs.patch_size
        augmentations.0.rand_augment.num_ops augmentations.0.rand_augment.magnitude""".split(),
    "own": ["method_kwargs.freeze_last_layer"],
}

#: Keys that the other commands have of their own.
OTHERS: Dict[str, Dict[str, Sequence[str]]] = {
    "main_linear.py": {
        "word": ["network", "pretrain_method"],
        "path": ["pretrained_feature_extractor"],
        "whole": ["data.train_transform.crop_size"],
        "list": ["data.train_transform.scale"],
        "node": ["data.train_transform"],
        "off": ["finetune", "mixup", "cutmix", "label_smoothing", "auto_augment"],
    },
    "main_finetune.py": {
        "word": ["network", "weights"],
        "path": ["pretrained_feature_extractor", "labels.file"],
        "whole": ["data.train_transform.crop_size", "labels.seed", "head_layers"],
        "number": ["labels.fraction", "scheduler.gamma"],
        "list": ["data.train_transform.scale"],
        "node": ["data.train_transform", "labels"],
    },
    "main_compare.py": {
        "path": [
            "dir",
            "landmarks.ground_truth",
            "landmarks.images",
            "voc07.root",
            "logistic.file",
        ],
        "word": [
            "reference",
            "paper.source",
            "paper.measures",
            "paper.claim",
            "clustering.images",
            "copies.distractors",
            "voc07.difficult",
        ],
        "list": """methods seeds protocols knn.k knn.features logistic.C clustering.k retrieval.ranks
            copies.transformations voc07.C voc07.shots logistic.fractions""".split(),
        "whole": """jobs threads gallery.rows gallery.columns holdout.seed
            logistic.max_iterations clustering.starts clustering.iterations landmarks.size
            copies.images voc07.draws""".split(),
        "switch": ["keep_checkpoints"],
        "number": ["knn.temperature", "holdout.fraction"],
        "node": """settings variants paper knn logistic clustering retrieval landmarks copies voc07 linear finetune
            gallery holdout trials""".split(),
    },
    "main_knn.py": {
        "flags of whole": "k batch_size num_workers train_images val_images subset_seed".split(),
        "flags of number": ["temperature"],
        "flags of word": """feature_type networks dataset data_format distance_function index
            feature_dtype device""".split(),
        "flags of path": "pretrained_checkpoint_dir train_data_path val_data_path store json".split(),
    },
    "main_evaluate.py": {
        "flags of whole": """knn.k logistic.max_iterations clustering.k clustering.starts
            clustering.iterations retrieval.ranks landmarks.size copies.images batch_size num_workers
            train_images val_images subset_seed seed voc07.shots voc07.draws""".split(),
        "flags of number": "knn.temperature logistic.C logistic.fractions voc07.C".split(),
        "flags of word": """protocols feature_type networks dataset data_format feature_dtype device
            clustering.images copies.transformations copies.distractors datasets download
            voc07.difficult""".split(),
        "flags of path": """pretrained_checkpoint_dir train_data_path val_data_path json data_root
            landmarks.ground_truth landmarks.images voc07.root logistic.file""".split(),
    },
    "main_umap.py": {
        "flags of whole": "seed batch_size num_workers train_images val_images subset_seed".split(),
        "flags of word": "feature_type networks dataset data_format device".split(),
        "flags of path": "pretrained_checkpoint_dir train_data_path val_data_path out".split(),
    },
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
    """Every key of a pretraining that some class knows."""
    return sorted(key for kinds in (KEYS, KWARGS) for keys in kinds.values() for key in keys)


def every_key() -> List[str]:
    """Every key of every command: those of others than pretraining with the script before them."""
    others = [
        f"{script} {key}"
        for script, kinds in OTHERS.items()
        for keys in kinds.values()
        for key in keys
    ]
    return [*all_keys(), *others]


#: Values of another kind, as Hydra reads them from the command line.
WRONG = {
    "whole": ["many", "[1,2]", "{a: 1}", "True", "1.5", "'8'", "''", "nan", "1e-3"],
    "number": ["many", "[1,2]", "{a: 1}", "True", "'0.1'", "''", "nan", "inf", "-inf"],
    "switch": ["maybe", "[True]", "{a: 1}", "7", "0.5", "''", "'yes'"],
    "word": ["[a,b]", "{a: 1}", "''", "True", "2.5"],
    "list": ["many", "{a: 1}", "7", "[[]]", "[many]", "[]"],
    "node": ["many", "[1,2]", "7", "True", "''"],
    "own": ["{a: 1}", "True", "''", "[]", "nan", "-7"],
    "path": ["''"],
    "off": ["True", "0.5", "x"],
    "flags of whole": ["many", "-3", "1.5", "", "9" * 30],
    "flags of number": ["hot", "0", "-1", "nan", "inf", ""],
    "flags of word": ["nothing", "", "7", "\x1b[31m"],
    "flags of path": ["", "/dev/null/x"],
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
