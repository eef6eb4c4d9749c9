"""Trees of tiny images in the layout of each data set that a recipe names, and recipes cut to two steps on them."""

import pickle
from pathlib import Path
from typing import Any, Dict

import numpy as np

from tests.helpers import METHOD_KWARGS, image_folder

#: Classes; one percent of the labels is an image of each, and these make two steps.
CLASSES, BATCH, STEPS = 8, 4, 2
#: CIFAR's: images of each of its six files.
PER_FILE = 10


def made_trees(root: Path) -> Path:
    """Folders of images as ImageNet's, and CIFAR-10's six files.

    Args:
        root: of ``folders/train``, ``folders/val`` and ``cifar``.
    """
    image_folder(root / "folders", per_class=3, classes=CLASSES, size=40)
    folder = root / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
        (folder / name).write_bytes(
            pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(PER_FILE)]})
        )
    classes = [f"class_{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    return root


def placed(data: Dict[str, Any], root: Path) -> Dict[str, Any]:
    """The ``data`` of a recipe on the made tree of its data set, read as the recipe reads it, by DALI too."""
    places = {
        "cifar10": (root / "cifar", root / "cifar"),
        "imagenet": (root / "folders" / "train", root / "folders" / "val"),
    }
    places["imagenet100"] = places["custom"] = places["imagenet"]
    train, val = map(str, places[data["dataset"]])
    found = {**data, "train_path": train, "val_path": val, "prepare": None, "num_workers": 0}
    if data["dataset"] != "cifar10":
        found["eval_transform"] = {"resize": 32, "crop_size": 32}
    if found.pop("no_labels", False):  # as the recipes' headers say for images with labels
        found["no_labels"] = False
    if data.get("train_transform"):
        found["train_transform"] = {**data["train_transform"], "crop_size": 32}
    return found


def on_this_machine(recipe: Dict[str, Any], root: Path) -> Dict[str, Any]:
    """A recipe for any number of cards as two steps of one process on the CPU.

    Args:
        recipe: composed; of a pretraining, a linear evaluation or a fine-tuning.
        root: what :func:`made_trees` made.
    """
    cut = {**recipe, "data": placed(recipe["data"], root)}
    cut.update(accelerator="cpu", devices=1, num_nodes=1, strategy="auto", precision="32-true")
    cut.update(sync_batchnorm=False, max_epochs=1, enable_progress_bar=False)
    cut["limit_train_batches"] = STEPS * recipe.get("accumulate_grad_batches", 1)
    cut["optimizer"] = {**recipe["optimizer"], "batch_size": BATCH}
    cut["dali"] = {**recipe.get("dali", {}), "device": "cpu"}
    cut["checkpoint"] = {"enabled": False}
    cut["auto_resume"] = {"enabled": False}
    return cut


def two_steps(recipe: Dict[str, Any], root: Path) -> Dict[str, Any]:
    """A pretraining's recipe as two steps on a made tree, evaluated: small views, and the method's widths tiny.

    Every other key of the method is the recipe's.
    """
    cut = on_this_machine(recipe, root)
    small = METHOD_KWARGS[recipe["method"]]
    if recipe.get("accumulate_grad_batches", 1) > 2:
        cut.update(accumulate_grad_batches=2, limit_train_batches=STEPS * 2)
    cut["method_kwargs"] = {**recipe["method_kwargs"], **small}
    cut["augmentations"] = [
        {**view, "crop_size": {224: 32, 96: 16}.get(view["crop_size"], view["crop_size"])}
        for view in recipe["augmentations"]
    ]
    cut["evaluation"] = {"enabled": True, "k": 3}
    return cut
