"""One run of a comparison, in a process of its own: pretraining, then k-NN, linear evaluation and gallery.

    python -m carp_plugin.commands.worker FOLDER

reads ``FOLDER/job.json`` and writes ``FOLDER/result.json``. Each stage leaves a file when it is finished, so that a
killed run repeats only the stage that it was killed in; a stage that is repeated starts from its beginning with its
seed, which is why its numbers are those of an unbroken run. The process ends when its standard input does: nothing is
left running when the comparison is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch

from carp_plugin.commands.evaluate import remarks_of
from carp_plugin.commands.finetune import finetune
from carp_plugin.commands.linear import linear
from carp_plugin.commands.pretrain import pretrain
from carp_plugin.compare.gallery import save
from carp_plugin.compare.plan import merged
from carp_plugin.compare.runner import JOB, RESULT
from carp_plugin.compare.statistics import LABELS_ALONE
from carp_plugin.data.loaders import labelled_loaders
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.protocols import PROTOCOLS, images_of
from carp_plugin.evaluation.protocols.knn import KnnResult, doubt_on_top5, weighted_knn
from carp_plugin.settings.finetune import read_finetune
from carp_plugin.settings.linear import read_linear
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.protocols import Others
from carp_plugin.settings.reading import read
from carp_plugin.training.callbacks.history import write_json
from carp_plugin.training.memory import peak_memory_mb

_CONSTANT = 1e-5  # spread of features below which all images look alike; that of a random network is above 1e-3
#: Keys that say which images there are, and how they are looked at.
_IMAGES = (
    *("dataset", "train_path", "val_path", "eval_transform"),
    *("train_images", "val_images", "subset_seed", "holdout"),
)
CORRECT, GALLERY = "correct.npz", "gallery.npz"


def work(folder: Path) -> Dict[str, Any]:
    """Does what ``job.json`` of the folder says.

    Args:
        folder: of the run.

    Returns:
        Dict[str, Any]: what ``result.json`` holds: an entry of ``runs`` in results.json.
    """
    job = json.loads((folder / JOB).read_text())
    settings = job["settings"]
    pretrained = _stage(folder, "pretrain", lambda: _pretrain(folder, settings["pretrain"]))
    result: Dict[str, Any] = {
        **{key: job[key] for key in ("label", "method", "seed", "trial")},
        **pretrained,
        "correct": None,
        "gallery": None,
    }
    checkpoint = folder / pretrained["checkpoint"]
    accuracy = result["accuracy"]
    if settings["knn"] or settings.get("protocols"):
        knn = _stage(folder, "knn", lambda: _frozen(folder, checkpoint, settings))
        for network, measured in knn["accuracy"].items():
            accuracy.setdefault(network, {"linear": None}).update(measured)
        result["seconds"]["knn"] = knn["seconds"]
        result["tensors"], result["spread"] = knn["tensors"], knn["spread"]
        result["gallery"] = knn["gallery"]
        result["remarks"] += knn.get("remarks", [])  # a stage of an earlier version has none
    networks = [name for name in ("student", "teacher") if name in accuracy]
    jobs = [("linear", name) for name in networks if settings["linear"]]
    if settings.get("finetune"):
        jobs += [("finetune", name) for name in networks]
        jobs += [("finetune", LABELS_ALONE)] * settings["finetune"]["labels_alone"]
    for kind, network in jobs:
        evaluate = partial(_classifier, folder, checkpoint, kind, network, settings)
        done = _stage(folder, f"{kind}-{network.replace(' ', '-')}", evaluate)
        result["remarks"] += done.get("remarks", [])
        accuracy.setdefault(network, {})[kind] = done["accuracy"]
        seconds = result["seconds"].get(kind, 0.0)
        result["seconds"][kind] = round(seconds + done["seconds"], 1)
    result["remarks"] = list(dict.fromkeys(result["remarks"]))
    if (folder / CORRECT).is_file():
        result["correct"] = CORRECT
    result["status"], result["why"] = _verdict(result)
    return result


def _stage(folder: Path, name: str, do: Callable[[], Dict[str, Any]]) -> Dict[str, Any]:
    """What a stage returned, now or when it was run before."""
    path = folder / f"stage-{name}.json"
    if not path.is_file():
        print(f"== {name}", flush=True)
        write_json(path, do())
    return json.loads(path.read_text())


def _pretrain(folder: Path, settings: Dict[str, Any]) -> Dict[str, Any]:
    models = folder / "pretrain"
    shutil.rmtree(models, ignore_errors=True)  # of a run that was killed
    kept = {"enabled": True, "dir": str(models), "frequency": 1, "keep_prev": False}
    given = {**settings, "checkpoint": kept, "enable_progress_bar": False}
    summary = pretrain(read_pretraining(given))
    checkpoint = Path(summary["checkpoint"])
    epochs = json.loads((checkpoint.parent / "metrics.json").read_text())
    seconds = sum(epoch["train_seconds"] for epoch in epochs)
    images = summary["steps"] * summary["plan"]["global_batch"]
    headline = str(summary["config"]["evaluation"]["k"])
    return {
        "accuracy": {
            row["features"].split(",")[0]: {
                "knn": None if row["knn"] is None else {"backbone": {headline: [row["knn"], None]}},
                "linear": None,
                "online_linear": row["linear"],
            }
            for row in summary["accuracy"]
        },
        "curves": epochs,
        "signs_of_collapse": summary["signs_of_collapse"],
        "remarks": summary["remarks"],
        "steps": summary["steps"],
        "seconds": {"pretrain": summary["seconds"], "training": round(seconds, 1)},
        "images_per_second": round(images / seconds, 1) if seconds else None,
        "peak_memory_mb": peak_memory_mb(),
        "config": summary["config"],
        "plan": summary["plan"],
        "provenance": {
            **{key: summary[key] for key in ("commit", "versions", "machine")},
            # where solo-learn lies is this machine's business
            "host": {k: v for k, v in summary["host"].items() if k != "location"},
        },
        "checkpoint": str(checkpoint.relative_to(folder)),
    }


def _frozen(folder: Path, checkpoint: Path, settings: Dict[str, Any]) -> Dict[str, Any]:
    """k-NN and the other protocols on frozen features, which are computed once for all of them."""
    started = time.perf_counter()
    pretrained = load_pretrained(checkpoint)
    print(pretrained.sentence)
    trained = pretrained.trained
    loaders = labelled_loaders(trained.data, trained.view, trained.optimizer.batch_size)
    if loaders is None:
        raise UserError("there are no labelled images to evaluate on; give data.val_path.")
    device = torch.device("cpu" if trained.accelerator == "cpu" else "cuda")
    wanted = settings["knn"] or {"features": ["backbone"]}
    networks = {
        name: (backbone.to(device), {kind: head.to(device) for kind, head in heads.items()})
        for name, (backbone, heads) in pretrained.parts(wanted["features"]).items()
    }
    images = images_of(
        pretrained,
        trained,
        networks,
        {"train": loaders[0], "val": loaders[1]},
        device,
        settings.get("protocols", ()),
        torch.float16,
        settings["pretrain"]["seed"],
    )
    accuracy: Dict[str, Any] = {name: {} for name in networks}
    correct: Dict[str, np.ndarray] = {}
    measured: Dict[str, KnnResult] = {}
    remarks: List[str] = []
    for column in images.columns if settings["knn"] else []:
        name, kind = column.split("/")
        found = weighted_knn(
            images.train[column],
            images.val[column],
            wanted["k"],
            wanted["temperature"],
            device=device,
        )
        accuracy[name].setdefault("knn", {})[kind] = found.accuracy
        measured[f"{name} {kind}"] = found
        if kind == "backbone":
            correct.update({f"knn/{name}/{k}": hit for k, hit in found.correct.items()})
    for protocol, node in settings.get("protocols", {}).items():
        print(f"== {protocol}", flush=True)
        told = read(Others, {protocol: node})
        results = PROTOCOLS[protocol].measure(images, getattr(told, protocol))
        remarks += remarks_of({protocol: results})
        for column, result in results.items():
            name, kind = column.split("/")
            if kind != "backbone":
                continue
            headline = next(iter(result.scores))
            accuracy[name][protocol] = {"headline": headline, **result.as_dict()}
            if headline in result.per_image:
                correct[f"{protocol}/{name}"] = result.per_image[headline]
    _save_correct(folder, correct)
    gallery = None
    val: Any = loaders[1]
    samples = getattr(val.dataset.dataset, "samples", None)  # files, where the images are files
    if settings["gallery"] and samples:
        files = [path for path, _ in samples]
        save(folder / GALLERY, pretrained.model, val, files, **settings["gallery"])
        gallery = GALLERY
    doubt = doubt_on_top5(measured)
    return {
        "accuracy": accuracy,
        "remarks": [*([doubt] if doubt else []), *remarks],
        "tensors": pretrained.tensors,
        "spread": {name: _spread(images.val[f"{name}/backbone"].feats) for name in networks},
        "gallery": gallery,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _classifier(
    folder: Path, checkpoint: Path, kind: str, network: str, settings: Dict[str, Any]
) -> Dict[str, Any]:
    """A linear evaluation or a fine-tuning of a network, or a fine-tuning from labels alone."""
    pretrain, name = settings["pretrain"], network.replace(" ", "-")
    shutil.rmtree(folder / f"{kind}-{name}", ignore_errors=True)
    alone = network == LABELS_ALONE
    own = {
        "name": name,
        "network": "student" if alone else network,
        "pretrained_feature_extractor": str(checkpoint),
        "seed": pretrain["seed"],
        "checkpoint": {"enabled": False},
        "auto_resume": {"enabled": False},
        "enable_progress_bar": False,
        **({"weights": "random", "head_layers": 0} if alone else {}),
    }
    # The images, their size and the machine are those of the pretraining, whichever was chosen there.
    data = {key: pretrain["data"].get(key) for key in _IMAGES}
    machine = {key: pretrain[key] for key in ("accelerator", "devices") if key in pretrain}
    keys = settings["linear"] if kind == "linear" else settings["finetune"]["keys"]
    given = merged(keys, own, machine)
    given["data"] = {**given["data"], **data, "prepare": None}
    done = linear(read_linear(given)) if kind == "linear" else finetune(read_finetune(given))
    _save_correct(folder, {f"{kind}/{network}": np.asarray(done["correct"])})
    measures = ("top1", "top5", "best_top1", "best_top5", "best_epoch")
    return {
        "accuracy": {key: done[key] for key in measures},
        "remarks": done["remarks"],
        "seconds": round(done["seconds"], 1),
    }


def _save_correct(folder: Path, correct: Dict[str, np.ndarray]) -> None:
    """Adds whether each validation image was classified correctly; the file is whole at any moment."""
    path = folder / CORRECT
    if path.is_file():
        with np.load(path) as earlier:
            correct = {**earlier, **correct}
    unfinished = path.with_name(f"unfinished-{CORRECT}")
    np.savez_compressed(unfinished, **correct)  # type: ignore[arg-type]
    os.replace(unfinished, path)


def _verdict(result: Dict[str, Any]) -> Tuple[str, Optional[str]]:
    """Whether a run that ended learned anything: its status, and why not."""
    signs = list(result["signs_of_collapse"])
    for network, spread in result.get("spread", {}).items():
        if not spread > _CONSTANT:  # nan too
            signs.append(f"the {network}'s features are the same for every image")
    return ("collapsed", "; ".join(signs)) if signs else ("ok", None)


def _spread(rows: torch.Tensor) -> float:
    """How far unit rows (N, F) are from being one and the same: 1 - |mean row|^2, 0 to 1."""
    return 1 - float(rows.float().mean(dim=0).square().sum())


def _follow_parent() -> None:
    """Ends this process when whoever started it is gone: its end of our standard input closes then."""

    def wait() -> None:
        while os.read(0, 1):  # unbuffered: Python could not shut down while a buffer's lock is held
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs one job; its failure is a result too.

    Returns:
        int: 0 when result.json was written.
    """
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    _follow_parent()
    job = json.loads((folder / JOB).read_text())
    if job["settings"]["threads"]:
        torch.set_num_threads(job["settings"]["threads"])
    try:
        result = work(folder)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Whatever a method raises is a row of the results, with the whole story in log.txt.
        traceback.print_exc()
        why = " ".join(str(error).split())
        if not isinstance(error, UserError):
            why = f"{type(error).__name__}: {why}"
        result = {key: job[key] for key in ("label", "method", "seed", "trial")}
        result.update(status="failed", why=why[:500])
    write_json(folder / RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
