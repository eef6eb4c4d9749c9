"""Broken command lines of the other scripts: linear evaluation, fine-tuning, k-NN, UMAP and comparison."""

from __future__ import annotations

import random
from typing import Callable, Sequence

from trials.fuzz_keys import KEYS, WRONG, Case, World, override, slip


def linear(dice: random.Random, world: World) -> Case:
    """A mistake in a linear evaluation."""
    kind = dice.choice(["whole", "number", "switch", "word", "node"])
    shared = "optimizer. scheduler. checkpoint. auto_resume. data. wandb. max_ seed limit_".split()
    keys = [key for key in KEYS[kind] if key.startswith(tuple(shared)) and "classifier" not in key]
    key = dice.choice([key for key in keys if key != "data.no_labels"])
    torn = world.broken / "torn.ckpt"
    torn.write_bytes(world.checkpoint.read_bytes()[:5000])
    given = [
        [override(key, dice.choice(WRONG[kind]))],
        [
            f"pretrained_feature_extractor={dice.choice(['nowhere', str(torn), '/dev/null', 'null'])}"
        ],
        ["network=pupil"],
        ["~pretrained_feature_extractor"],
        ["data.train_transform.scale=[1,0.5]"],
        [f"data.train_transform.scale={dice.choice(['[a,b]', '7', '[1]', '{a: 1}'])}"],
        [f"data.train_transform.crop_size={dice.choice(['0', 'many', '-4', 'null', '10000000'])}"],
        ["data.eval_transform.resize=8"],
        ["++mixup=0.5"],
        [f"++{slip(dice, 'pretrain_method')}=1"],
        ["++backbone.name=resnet50"],
        ["++pretrain_method=byol"],
    ]
    return Case("", "main_linear.py", dice.choice(given[:1] * 4 + given[1:]))


def finetune(dice: random.Random, world: World) -> Case:
    """A mistake in a fine-tuning."""
    listed = world.broken / "labels.txt"
    listed.write_text(
        dice.choice(["", "no_such.png\n", "0.png\n", "class_0/0.png\nclass_0/0.png\n"])
    )
    given = [
        ["pretrained_feature_extractor=null"],
        ["pretrained_feature_extractor=nowhere"],
        ["network=pupil"],
        [f"weights={dice.choice(['imagenet', '7', 'null null'])}"],
        [f"labels.fraction={dice.choice(['0', '1.5', '-1', 'half', 'True'])}"],
        [f"labels.file={dice.choice(['nowhere.txt', str(world.broken), str(listed)])}"],
        ["labels.fraction=0.5", f"labels.file={listed}"],
        [f"scheduler.gamma={dice.choice(['0', '2', 'many'])}"],
        [f"scheduler.lr_decay_steps={dice.choice(['[4,2]', '[0]', '[]', '[a]'])}"],
        ["optimizer.name=adamw"],
        ["data.fraction=0.5"],
        ["labels.fraction=0.01"],  # one image a class, fewer than a batch
        [f"++{slip(dice, 'labels')}.seed=1"],
    ]
    return Case("", "main_finetune.py", dice.choice(given))


def offline(script: str, own: Sequence[Sequence[str]]) -> Callable[[random.Random, World], Case]:
    """A class of mistakes in the flags of a script.

    Args:
        script: one that flags tell what to do.
        own: mistakes in flags that this script alone has.
    """

    def make(dice: random.Random, world: World) -> Case:
        checkpoint = ["--pretrained_checkpoint_dir", str(world.checkpoint)]
        torn = world.broken / "torn.ckpt"
        torn.write_bytes(world.checkpoint.read_bytes()[:5000])
        shared = [
            [],
            ["--pretrained_checkpoint_dir"],
            ["--pretrained_checkpoint_dir", dice.choice(["nowhere", "/dev/null", str(torn), ""])],
            [*checkpoint, f"--{slip(dice, 'batch_size')}", "3"],
            [*checkpoint, "--batch_size", dice.choice(["0", "-3", "many", "1.5", ""])],
            [*checkpoint, "--num_workers", dice.choice(["-1", "two", "9" * 12])],
            [*checkpoint, "--device", dice.choice(["gpu", "cuda:99", "cpu:1x", ""])],
            [*checkpoint, "--networks", dice.choice(["pupil", "", "student,teacher"])],
            [*checkpoint, "--feature_type", dice.choice(["head", "", "\x1b[31m"])],
            [*checkpoint, "--train_data_path", dice.choice(["nowhere", "/dev/null", "x" * 300])],
            [*checkpoint, "--val_data_path", dice.choice(["nowhere", str(world.configs), "."])],
            [*checkpoint, "--dataset", "imagenet1k"],
            [*checkpoint, "--data_format", "zip"],
        ]
        mine = [[*checkpoint, *some] for some in own]
        given = list(dice.choice([dice.choice(shared), dice.choice(mine)]))
        if script == "main_knn.py" and "--k" not in given and "--pretrained" in "".join(given):
            given += ["--k", "5"]  # of as few images
        return Case("", script, given)

    return make


def compare(dice: random.Random, world: World) -> Case:
    """A mistake in a comparison."""
    given = [
        f"methods={dice.choice(['[carpp]', 'carp', '[]', '[carp,carp]', '[3]', 'null', '[[a]]'])}",
        f"seeds={dice.choice(['[a]', '3', '[]', '[-1]', '[0,0]', '[1.5]', 'null', '{a: 1}'])}",
        f"jobs={dice.choice(['0', 'many', '-2', '1.5', 'null', '[1]'])}",
        f"threads={dice.choice(['0', 'many', '-2', '[1]', '1.5'])}",
        f"keep_checkpoints={dice.choice(['maybe', '7', '[]'])}",
        f"knn.k={dice.choice(['[0]', 'ten', '[a]', '[100000]', '-1', '{a: 1}'])}",
        f"knn.temperature={dice.choice(['0', 'hot', '-1', '[0.1]', 'nan'])}",
        f"knn.features={dice.choice(['[head]', '[]', 'head', '7', '[projector]'])}",
        f"knn={dice.choice(['7', '[1]', 'maybe'])}",
        f"gallery={dice.choice(['7', '[1]', 'maybe'])}",
        f"gallery.rows={dice.choice(['0', 'many', '-1', '[1]'])}",
        f"settings={dice.choice(['7', '[1]', 'maybe', '{carpp: {}}'])}",
        f"settings.carp={dice.choice(['7', '[1]', 'maybe', '{no_such_key: 1}'])}",
        f"variants={dice.choice(['7', '[1]', 'maybe', '{a: 3}', '{a: {}}', '{a/b: {method: carp}}'])}",
        f"variants.a.method={dice.choice(['carpp', '7', '[carp]'])}",
        f"reference={dice.choice(['carpp', '7', '[carp]'])}",
        f"paper={dice.choice(['7', '[1]', '{source: a}', '{source: 3, claim: b}'])}",
        f"++holdout.fraction={dice.choice(['0', '1', 'half', '-1', 'nan', '[1]'])}",
        f"holdout={dice.choice(['7', '[1]', 'maybe'])}",
        f"trials={dice.choice(['7', '[1]', 'maybe', '{carp: 3}', '{carp: [{a: 1}]}'])}",
        f"++linear={dice.choice(['7', '[1]', 'maybe'])}",
        f"dir={dice.choice(['/dev/null/x', '7.5', '[a]', 'true'])}",
        f"optimizer.lr={dice.choice(['many', '-1', 'nan'])}",
        f"data.train_path={dice.choice(['nowhere', '/dev/null'])}",
        f"{slip(dice, 'keep_checkpoints')}=1",
    ]
    return Case("", "main_compare.py", [dice.choice(given)])


KNN = [["--k", "0"], ["--k", "ten"], ["--k", "100000"], ["--temperature", "0"]]
KNN += [["--temperature", "nan"], ["--temperature", "inf"], ["--distance_function", "euclidean"]]
KNN += [
    ["--index", "tree"],
    ["--json", "."],
    ["--json", "/dev/null/x"],
    ["--feature_dtype", "int8"],
]
KNN += [["--store", "/dev/null"], ["--store", "/dev/null/x"], ["--k"], ["stray"]]
EVALUATE = [
    ["--protocols", "knnn"],
    ["--protocols"],
    ["--knn.k", "0"],
    ["--knn.kk", "5"],
    ["--knn", "5"],
    ["--logistic.C", "0"],
    ["--logistic.C", "many"],
    ["--clustering.k", "0"],
    ["--clustering.starts", "0"],
    ["--retrieval.ranks", "first"],
    ["--protocols", "landmarks"],
    [
        "--protocols",
        "landmarks",
        "--landmarks.ground_truth",
        "/dev/null",
        "--landmarks.images",
        ".",
    ],
    ["--copies.transformations", "flip"],
    ["--datasets", "flower102"],
    ["--datasets", "flowers102"],
    ["--datasets", "flowers102", "--data_root", "nowhere"],
    ["--datasets", "mine=nowhere"],
    ["--datasets", "mine="],
    ["--download"],
    ["--seed", "-1"],
    ["--json", "."],
    ["--json", "/dev/null/x"],
    ["--feature_dtype", "int8"],
    ["stray"],
]
UMAP = [
    ["--seed", "-1"],
    ["--seed", "1.5"],
    ["--seed", "9" * 20],
    ["--out", "/dev/null"],
    ["stray"],
]
UMAP += [["--out", "/dev/null/x"], ["--out"]]
