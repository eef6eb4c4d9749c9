"""Made results of a comparison: what `results.json` holds, without a training."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from carp_plugin.compare.statistics import summarise

IMAGES = 400
TEACHERLESS = ("swav", "barlow_twins")
#: Chances (k-NN, linear) of getting an image right.
LEVELS = {
    "carp": (0.58, 0.66),
    "byol": (0.55, 0.64),
    "swav": (0.5, 0.6),
    "barlow_twins": (0.52, 0.61),
}
LOSSES = {
    "carp": {"train_consistency": 3.0, "train_entropy_gap": 0.4, "train_information": 1.2},
    "byol": {"train_neg_cos_sim": -1.5, "train_z_std": 0.05},
}

Vectors = Dict[Tuple[str, int], Dict[str, np.ndarray]]


def made_results(
    methods: Sequence[str] = ("carp", "byol", "swav", "barlow_twins"),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 6,
    linear: bool = True,
    failed: Sequence[Tuple[str, int]] = (),
    collapsed: Sequence[Tuple[str, int]] = (),
) -> Tuple[Dict[str, Any], Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]]:
    """Results with their summary, and the function that gives a run's vectors."""
    vectors: Vectors = {}
    runs = []
    for method in methods:
        for seed in seeds:
            if (method, seed) in failed:
                runs.append(failed_run(method, seed))
                continue
            of_run = vectors[method, seed] = made_vectors(method, seed, linear)
            run = made_run(method, seed, of_run, epochs)
            if (method, seed) in collapsed:
                why = "assignments are constant: they say nothing about the image."
                run.update(status="collapsed", why=why)
            runs.append(run)
    results = {
        "schema": 1,
        "name": "photos",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "host": {"name": "solo-learn", "version": "1.0.2"},
        "versions": {"torch": "2.14.1", "numpy": "2.4.6"},
        "machine": {"device": "1 x cpu", "threads": 2},
        "command": "python main_compare.py --config-name photos.yaml 'methods=[carp,byol]'",
        "date": "2026-11-23",
        "data": {
            "train_path": "datasets/photos/train",
            "val_path": "datasets/photos/val",
            "train_images": 2070,
            "val_images": IMAGES,
            "classes": 15,
        },
        "protocol": {
            "knn": {"k": [10, 20], "temperature": 0.07, "headline_k": 20},
            "linear": {"epochs": 10, "lr": 0.1} if linear else None,
        },
        "config": {"methods": list(methods), "seeds": list(seeds), "max_epochs": epochs},
        "runs": runs,
    }
    correct = correct_of(vectors)
    results["summary"] = summarise(runs, correct, draws=1000)
    return results, correct


def correct_of(vectors: Vectors) -> Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]:
    return lambda run: vectors[run["label"], run["seed"]]


def made_vectors(method: str, seed: int, linear: bool) -> Dict[str, np.ndarray]:
    """Images are hard for all methods alike, so that pairing has something to take out."""
    hardness = np.random.default_rng(99).uniform(size=IMAGES)
    noise = np.random.default_rng([seed, len(method), ord(method[0])])
    knn, lin = LEVELS.get(method, (0.4, 0.5))
    keys = {"knn/student/20": knn, "linear/student": lin}
    if method not in TEACHERLESS:
        keys.update({"knn/teacher/20": knn + 0.02, "linear/teacher": lin + 0.01})
    return {
        key: hardness + noise.normal(0, 0.1, IMAGES) < level
        for key, level in keys.items()
        if linear or not key.startswith("linear")
    }


def accuracies(vectors: Mapping[str, np.ndarray]) -> Dict[str, Any]:
    """The accuracies that the vectors add up to, in the layout of a run."""
    found: Dict[str, Any] = {"random": {"knn": {"backbone": {"20": [27.0, 60.0]}}, "linear": None}}
    for key, vector in vectors.items():
        kind, features, *k = key.split("/")
        top1 = 100 * float(vector.mean())
        entry = found.setdefault(features, {"knn": None, "linear": None})
        if kind == "knn":
            entry["knn"] = {"backbone": {k[0]: [top1, min(100.0, top1 + 25)]}}
        else:
            entry["linear"] = {"top1": top1, "top5": 95.0, "best_top1": top1, "best_epoch": 9}
    return found


def made_run(
    method: str, seed: int, vectors: Mapping[str, np.ndarray], epochs: int = 6
) -> Dict[str, Any]:
    accuracy = accuracies(vectors)
    return {
        "method": method,
        "label": method,
        "seed": seed,
        "status": "ok",
        "why": None,
        "accuracy": accuracy,
        "curves": made_curves(method, seed, accuracy, epochs),
        "steps": 32 * epochs,
        "seconds": {"pretrain": 61.5 + seed, "knn": 2.0, "linear": 11.0},
        "images_per_second": 200.0 + seed,
        "peak_memory_mb": 900.0,
        "config": {"method": method, "backbone": {"name": "resnet18"}, "seed": seed},
        "checkpoint": f"runs/{method}-seed{seed}/last.ckpt",
        "correct": f"runs/{method}-seed{seed}/correct.npz",
        "gallery": None,
    }


def made_curves(
    method: str, seed: int, accuracy: Mapping[str, Any], epochs: int
) -> List[Dict[str, float]]:
    noise = np.random.default_rng([seed, 7])
    curves: List[Dict[str, float]] = [{"epoch": -1, "step": 0, "knn_student": 27.0}]
    for epoch in range(epochs):
        entry: Dict[str, float] = {"epoch": epoch, "step": 32 * (epoch + 1)}
        for key, value in LOSSES.get(method, {"train_loss": 2.0}).items():
            entry[key] = value * (1 + 0.5 ** (epoch + 1)) + float(noise.normal(0, 0.02))
        for who in ("student", "teacher"):
            final = end_of(accuracy, who)
            if final is not None:
                rise = 1 - 0.5 ** (epoch + 1)
                entry[f"knn_{who}"] = 27 + (final - 27) * rise + float(noise.normal(0, 1))
        curves.append(entry)
    return curves


def end_of(accuracy: Mapping[str, Any], who: str) -> Optional[float]:
    return accuracy[who]["knn"]["backbone"]["20"][0] if who in accuracy else None


def failed_run(method: str, seed: int) -> Dict[str, Any]:
    return {
        "method": method,
        "label": method,
        "seed": seed,
        "status": "failed",
        "why": "the loss was nan at step 12.",
        "accuracy": None,
        "curves": [],
        "config": {"method": method},
        "gallery": None,
    }
