"""Cases of trials/reports.py about images and about what is made of them: listings, numbers, evaluation, small data."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, Dict

import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

from carp_plugin.host import HOST
from tests.linear_helpers import linear_cfg
from trials.report_world import KNN, LINEAR, ROOT, Answer, NotRun, World, case, must

UNLABELLED = ("data.no_labels=True", "data.val_path=null", "momentum.classifier=False")


def knn(world: World, *flags: str) -> Answer:
    """The k-NN evaluation of the last checkpoint on the images that it was trained on."""
    answer = world.script(KNN, "--pretrained_checkpoint_dir", str(world.last()), *flags)
    return answer.spoke()


def flat(world: World, folder: Path) -> Answer:
    """A pretraining of a folder without labels."""
    return world.train(f"data.train_path={folder}", *UNLABELLED).spoke()


# -- what the folder holds


@case("9", "macOS metadata (._0.png) beside every image of a class")
def _metadata(world: World) -> None:
    for part in ("train", "val"):
        for path in (world.images / part / "c0").glob("*.png"):
            path.with_name(f"._{path.name}").write_bytes(
                b"\0\5\x16\7\0\2\0\0Mac OS X".ljust(4096, b"\0")
            )
    answer = world.train("evaluation.enabled=True").ran()
    must(answer.images == 72, f"{answer.images} images, 72 are right")
    answer.says("._")
    knn(world, "--k", "5").ran()
    world.said = answer


@case("10", "less usual endings, in class folders and in a flat one")
def _endings(world: World) -> None:
    names = (".jfif", ".avif", ".gif", ".jp2", ".JPE")
    renamed = [(f"c0/{i}.png", names[i % 5]) for i in range(10)]
    renamed += [(f"c1/{i}.png", ".heic") for i in range(2)]
    for name, ending in renamed:
        path = world.images / "train" / name
        path.rename(path.with_suffix(ending))
    one = world.train().spoke()
    other = flat(world, world.flat())
    counts = one.ran().images, other.ran().images
    must(counts[0] == counts[1], f"{counts[0]} images in class folders, {counts[1]} in a flat one")
    if counts[0] < 72:
        known = [ending for ending in (*names, ".heic") if ending.lower() in one.text.lower()]
        must(known, f"{72 - counts[0]} files are left out and no ending is named")


@case("11", "files that are no images in a flat folder")
def _no_images(world: World) -> None:
    folder = world.flat()
    for name in ("LICENSE", "a.h5", "b.mpg", "c.eps", "d.fits"):
        (folder / name).write_bytes(b"no image at all " * 40)
    answer = flat(world, folder).ran()
    must(answer.images == 72, f"{answer.images} images, 72 are right")


@case("12", "images at the root of a labelled folder; without labels; a tree without labels")
def _roots(world: World) -> str:
    mixed = world.images / "mixed"
    shutil.copytree(world.images / "train" / "c0", mixed / "c0")
    for i in range(40):
        world.write(f"mixed/{i}.png", seed=i)
    shutil.copytree(world.images / "val" / "c0", world.images / "mixed_val" / "c0")
    paths = (f"data.train_path={mixed}", f"data.val_path={world.images / 'mixed_val'}")
    answer = world.train(*paths).spoke()
    must("40 " in answer.text, "the 40 images at the root are not named")
    said = answer.line()
    answer = flat(world, mixed).ran()
    must(answer.images == 52, f"without labels {answer.images} images, 52 are right")
    for i in range(20):
        world.write(f"tree/2024/0{i % 2 + 5}/{i}.png", seed=i)
    answer = flat(world, world.images / "tree").ran()
    must(answer.images == 20, f"{answer.images} images of the tree, 20 are right")
    return said


@case("21", "DALI, a sub-folder in each class and a Thumbs.db beside it")
def _dali(world: World) -> None:
    if (
        importlib.util.find_spec("nvidia") is None
        or importlib.util.find_spec("nvidia.dali") is None
    ):
        raise NotRun("DALI is not installed")
    for folder in (world.images / "train").iterdir():
        (folder / "more").mkdir()
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 100)
        for i in range(6):
            (folder / f"{i}.png").rename(folder / "more" / f"{i}.png")
    other = world.train().ran()
    answer = world.train("data.format=dali", "++dali.device=cpu").spoke()
    if answer.code == 2:  # a sentence where the two would not see the same
        answer.refused("dali")
        return
    same = answer.ran().images == other.images == 72
    must(
        same or "image_folder" in answer.text, f"{answer.images} and {other.images} images, unsaid"
    )


@case("22", "a class without validation images; a test set that lacks a class")
def _missing_class(world: World) -> None:
    shutil.rmtree(world.images / "val" / "c5")
    answer = world.train("evaluation.enabled=True").ran().warns("c5")
    knn(world, "--k", "5").ran().warns("c5")
    shutil.copytree(world.images / "val" / "c4", world.images / "val" / "unknown")
    world.train().refused("unknown")
    world.said = answer


@case("1a", "hidden folders and a Thumbs.db beside and within the classes")
def _hidden(world: World) -> None:
    world.write("train/c0/.thumbnails/0.png")
    world.write("train/c0/@eaDir/0.png")
    world.write("train/.trash/0.png")
    (world.images / "train" / "c1" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 100)
    answer = world.train().ran()
    must(answer.images == 72, f"{answer.images} images, 72 are right")
    must("6 classes" in answer.text, "a hidden folder is a class")
    answer.says("left out")


@case("1b", "a class that is a link to a folder, seen alike by all; a link to nothing is named")
def _linked(world: World) -> None:
    path = world.images / "train" / "c3"
    path.rename(world.images / "elsewhere")
    path.symlink_to(world.images / "elsewhere")
    answer = world.train().ran()
    must(answer.images == 72, f"{answer.images} images, 72 are right")
    store = world.home / "store"
    knn(world, "--k", "5", "--store", str(store)).ran()
    rows = [len(content["paths"]) for content in stored(store).values()]
    must(72 in rows, f"the k-NN has {rows} rows")
    (world.images / "train" / "c2" / "gone.png").symlink_to("/nowhere/at/all.png")
    world.train().spoke().warns("gone.png")


# -- narrow types, rates, evaluation


@case("6", "64-true, bf16-true, and a linear evaluation with bf16-true")
def _precisions(world: World) -> None:
    for precision in ("64-true", "bf16-true"):
        answer = world.train(f"precision={precision}", "evaluation.enabled=True").spoke()
        if answer.code == 0:
            must(all(row["knn"] > 0 for row in world.summary()["accuracy"]), "no accuracy")
        else:
            answer.refused("precision")
            must(not world.checkpoints(), "refused after training")
        shutil.rmtree(world.out, ignore_errors=True)
    world.train().ran()
    linear_config(world, precision="bf16-true")
    answer = world.script(
        LINEAR, "--config-path", str(world.home), "--config-name", "linear"
    ).spoke()
    if answer.code:
        answer.refused("precision")


def linear_config(world: World, **changes: Any) -> None:
    """Writes ``linear.yaml``: an evaluation of the last checkpoint."""
    changes = {"max_epochs": 1, "checkpoint__dir": str(world.home / "linear"), **changes}
    content = OmegaConf.to_container(linear_cfg(world.images, world.last(), **changes))
    (world.home / "linear.yaml").write_text(yaml.safe_dump(content))


@case("16", "no warm-up: every group of parameters has its own rate, on both hosts")
def _groups(world: World) -> str:
    rates = ("scheduler.warmup_epochs=0", "optimizer.classifier_lr=0.04", "max_epochs=2")
    world.train(*rates).ran()
    first = world.rates(world.checkpoints()[0])
    ratio = max(first) / min(first)
    must(abs(ratio - 0.04 / 0.0012) < 0.01, f"rates {sorted(set(first))} after an epoch")
    said = f"solo-learn {HOST.version}: rates {sorted(set(first))} after the first of two epochs"
    if HOST.kind == "pypi":
        raise NotRun(f"right here, but current solo-learn is not installed; {said}")
    return said


@case("17", "a bank of 72 and the usual numbers of neighbours")
def _default_k(world: World) -> None:
    world.train().ran()
    answer = knn(world).ran()
    must("200" in answer.text and "72" in answer.text, "it is not said that k = 200 is left out")
    must("10" in answer.out, "no accuracy with k = 10")


@case("18", "weights saved again: contiguous tensors")
def _contiguous(world: World) -> str:
    world.train().ran()
    state = world.content()["state_dict"]
    backbone = {k: v for k, v in state.items() if k.startswith("momentum_backbone.")}
    must(backbone, "no teacher in the checkpoint")
    loose = [name for name, tensor in state.items() if not tensor.is_contiguous()]
    must(not loose, f"{len(loose)} tensors are not contiguous")
    if importlib.util.find_spec("safetensors") is None:
        return f"{len(state)} tensors, all contiguous; safetensors is not installed"
    from safetensors.torch import save_file

    save_file(backbone, str(world.home / "teacher.safetensors"))
    return f"{len(state)} tensors, all contiguous; safetensors wrote the teacher's {len(backbone)}"


@case("19", "a wrapper's prefix before every name (_orig_mod., module.)")
def _prefixes(world: World) -> None:
    world.train().ran()
    path = world.last()
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content["state_dict"]
    for prefix in ("_orig_mod.", "module."):
        content["state_dict"] = {prefix + name: tensor for name, tensor in state.items()}
        torch.save(content, path)
        answer = knn(world, "--k", "5")
        if answer.code:
            answer.refused(prefix)
            must(len(answer.line()) < 700, "a list of all tensors")


def stored(folder: Path) -> Dict[str, Any]:
    """Every JSON file below a folder that has paths."""
    found = {str(path): json.loads(path.read_text()) for path in folder.rglob("*.json")}
    return {name: content for name, content in found.items() if "paths" in content}


@case("20", "whose features are stored: paths, labels, classes in order")
def _whose(world: World) -> str:
    world.train().ran()
    store = world.home / "store"
    knn(world, "--k", "5", "--store", str(store)).ran()
    found = stored(store)
    must(found, "no paths beside the rows")
    for content in found.values():
        for path, label in zip(content["paths"], content["labels"]):
            name = content["classes"][label]
            must(Path(path).parent.name == name, f"{path} is said to be of class {name}")
    return f"{len(found)} files with paths, labels and classes: " + ", ".join(
        f"{len(content['paths'])} rows" for content in found.values()
    )


@case("24", "photographs of 300 px, evaluated on their central 32 x 32 pixels")
def _small_crop(world: World) -> None:
    for part, count in (("train", 8), ("val", 2)):
        for i in range(count):
            for label in range(6):
                world.write(f"large/{part}/c{label}/{i}.png", size=300, seed=i)
    paths = [f"data.{part}_path={world.images / 'large' / part}" for part in ("train", "val")]
    answer = world.train(*paths, "evaluation.enabled=True").spoke()
    if answer.code == 0:
        answer.warns("crop")
        must("crop" in json.dumps(world.summary()["remarks"]), "summary.json has no warning")
        knn(world, "--k", "5").warns("crop")
        world.said = answer
    must((ROOT / "scripts/compare/custom.yaml").is_file(), "no recipe scripts/compare/custom.yaml")


# -- numbers that cannot be meant, large files, small data


def in_summary(world: World, word: str) -> None:
    """A warning in summary.json has the word."""
    said = json.dumps(world.summary()["remarks"]).lower()
    must(word in said, f"no warning in summary.json says {word!r}")


@case("7a", "validation images among the training images")
def _overlap(world: World) -> None:
    shutil.rmtree(world.images / "val")
    shutil.copytree(world.images / "train", world.images / "val")
    world.train("evaluation.enabled=True").ran().warns("validation", "training")
    in_summary(world, "validation")


@case("7b", "batches that leave most images out of every epoch")
def _left_out(world: World) -> None:
    world.train("optimizer.batch_size=40").ran().warns("40 of the 72 images")
    in_summary(world, "image")


@case("8b", "a photograph of 13,500 x 13,500 with the key that the sentence names")
def _large_photograph(world: World) -> None:
    path = world.images / "train" / "c0" / "0.png"
    Image.new("L", (13_500, 13_500)).save(path, compress_level=1)
    named = world.train().spoke()
    named.says("data.max_pixels=")
    key = [word for word in named.text.split() if word.startswith("data.max_pixels=")][-1]
    answer = world.train(key.rstrip(".,;)'\"")).ran()
    must("cannot be read" not in answer.text, "the key does not let it in")
    must(answer.images == 72, f"{answer.images} images, 72 are right")


@case("9a", "three classes: no column of top-5 accuracy")
def _few_classes(world: World) -> None:
    for part in ("train", "val"):
        for label in (3, 4, 5):
            shutil.rmtree(world.images / part / f"c{label}")
    world.train("optimizer.batch_size=6").ran()
    knn(world, "--k", "5").ran().says("3 classes: top-5 would say nothing")


@case("9b", "only an explicit k that does not fit is refused")
def _explicit_k(world: World) -> None:
    world.train().ran()
    knn(world, "--k", "200").refused("200", "72")
    for path in (world.images / "train").rglob("*.png"):
        if int(path.stem) > 0:
            path.unlink()
    answer = knn(world)  # six images are a bank of fewer than any of the usual numbers
    if answer.code:
        answer.refused("6")
