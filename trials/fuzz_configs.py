"""Broken configurations and command lines, made at random from a seed, class by class.

Each class knows by itself what the program must answer: it does not ask the program's own tables.
"""

from __future__ import annotations

import random
from typing import Callable, Dict, List, Optional, Sequence

from trials.fuzz_keys import KEYS, KWARGS, OTHERS, WRONG, Case, World, all_keys, override, slip
from trials.fuzz_scripts import EVALUATE, KNN, UMAP, compare, finetune, linear, offline

_MAY_BE_SWITCH = {"deterministic"}
_BELOW_ZERO = {"data.fraction", "max_steps", "num_sanity_val_steps"}
_CHOICES = """method backbone.name data.dataset data.format data.prepare optimizer.name scheduler.name
    scheduler.interval method_kwargs.partition method_kwargs.teacher_prototypes dali.device
    knn_eval.distance_func accelerator strategy gradient_clip_algorithm profiler precision""".split()
_REQUIRED = """name method backbone.name data.dataset data.train_path data.num_workers augmentations
    optimizer.name optimizer.batch_size optimizer.lr optimizer.classifier_lr optimizer.weight_decay
    scheduler.name max_epochs""".split()
_CONTROL = ["\x1b[31m", "\x07", "\n", "\r", "\t", "\0", "ä", "日本", "\u202e", "🙂", " ", "\\"]


def make(seed: int, count: int, world: World) -> List[Case]:
    """So many cases, the classes in turn, so that each has as many as another.

    Args:
        seed: of all random choices.
        count: of the cases.
        world: what they use.
    """
    dice = random.Random(seed)
    # Kinds of wrong values come key by key, so that a few hundred cases meet every key.
    keys = [
        (kind, key, script)
        for script, kinds in (("main_pretrain.py", KEYS), ("", KWARGS), *OTHERS.items())
        for kind, some in kinds.items()
        for key in some
    ]
    dice.shuffle(keys)
    cases = []
    for i in range(count):
        # Of three cases one is a wrong type: there are that many keys.
        classes = list(CLASSES)
        if i % 3 == 0:
            cases.append(_wrong_type(dice, world, *keys[i // 3 * 2 % len(keys)]))
        elif i % 3 == 1:
            cases.append(_wrong_type(dice, world, *keys[(i // 3 * 2 + 1) % len(keys)]))
        else:
            name = classes[i // 3 % len(classes)]
            case = CLASSES[name](dice, world)
            cases.append(case._replace(kind=name))
    return [_with_config(case, world) for case in cases]


def _with_config(case: Case, world: World) -> Case:
    """Names the small configuration, where the class does not name another one."""
    if case.script in ("main_knn.py", "main_evaluate.py", "main_umap.py"):
        return case
    given = list(case.arguments)
    if not any(argument.startswith("--config-name") for argument in given):
        own = ("main_linear.py", "main_finetune.py", "main_compare.py")
        name = case.script[len("main_") : -len(".py")] if case.script in own else "small"
        given = [f"--config-name={name}.yaml", *given]
    if not any(argument.startswith("--config-path") for argument in given):
        given = [f"--config-path={world.configs}", *given]
    return case._replace(arguments=given)


def _pretrain(*arguments: str, fails: Optional[bool] = True, keys: Sequence[str] = ()) -> Case:
    return Case("", "main_pretrain.py", list(arguments), fails, keys)


def _wrong_type(dice: random.Random, world: World, kind: str, key: str, script: str) -> Case:
    value = dice.choice([v for v in WRONG[kind] if not (v == "True" and key in _MAY_BE_SWITCH)])
    kind = f"wrong type: {kind}"
    if kind.startswith("wrong type: flags"):
        given = [] if key in ("k", "pretrained_checkpoint_dir") else ["--k", "5"]
        if script != "main_knn.py":
            given = []
        if key != "pretrained_checkpoint_dir":
            given += ["--pretrained_checkpoint_dir", str(world.checkpoint)]
        return Case(kind, script, [*given, f"--{key}", value], True, [f"{script} {key}"])
    if script in OTHERS:
        return Case(kind, script, [f"{key}={value}"], True, [f"{script} {key}"])
    if not script and key.startswith("method_kwargs."):  # of a method of the host
        given = ["method=byol", "~method_kwargs", override(key, value)]
        return Case(kind, "main_pretrain.py", given, True, [key])
    signed = override(key, value) if dice.random() < 0.5 else f"{key}={value}"
    return _pretrain(signed, keys=[key])._replace(kind=kind)


def _misspelt(dice: random.Random, world: World) -> Case:
    key = dice.choice([key for key in all_keys() if "augmentations.0" not in key])
    parts = key.split(".")
    at = dice.randrange(len(parts))
    parts[at] = slip(dice, parts[at])
    wrong = ".".join(parts)
    if wrong in all_keys() or any(known.startswith(f"{wrong}.") for known in all_keys()):
        parts[at] += "x"
    return _pretrain(dice.choice(["", "+", "++"]) + ".".join(parts) + "=1", keys=[key])


def _unknown_choice(dice: random.Random, world: World) -> Case:
    key = dice.choice(_CHOICES)
    words = ["resnet81", "carpp", "byoI", "adamww", "cosin", "imagenet1k", "tpu9", "photo", "17"]
    return _pretrain(override(key, f"'{dice.choice(words)}'"), keys=[key])


def _missing(dice: random.Random, world: World) -> Case:
    key = dice.choice(_REQUIRED)
    return _pretrain(dice.choice([f"~{key}", f"{key}=???", f"{key}=null"]), keys=[key])


def _out_of_range(dice: random.Random, world: World) -> Case:
    kind = dice.choice(["whole", "number"])
    key = dice.choice([key for key in KEYS[kind] if key not in _BELOW_ZERO])
    return _pretrain(
        override(key, dice.choice(["-1", "-3"]) + ("" if kind == "whole" else ".5")), keys=[key]
    )


def _huge(dice: random.Random, world: World) -> Case:
    key = dice.choice([key for key in KEYS["whole"] if key not in ("max_epochs", "max_steps")])
    return _pretrain(
        override(key, dice.choice(["10000000000000", "9" * 30])), fails=None, keys=[key]
    )


def _null(dice: random.Random, world: World) -> Case:
    key = dice.choice(all_keys())
    return _pretrain(override(key, "null"), fails=None, keys=[key])


def _contradiction(dice: random.Random, world: World) -> Case:
    pairs = [
        ["method_kwargs.num_prototypes=33"],
        ["method_kwargs.partition_size=64"],
        ["momentum.base_tau=0.99", "momentum.final_tau=0.9"],
        ["augmentations.0.rrc.crop_min_scale=0.9", "augmentations.0.rrc.crop_max_scale=0.2"],
        ["augmentations.0.num_crops=1"],
        ["augmentations.0.num_crops=3"],
        ["optimizer.batch_size=64"],
        ["optimizer.batch_size=1"],
        ["++data.no_labels=True"],
        ["scheduler.name=step"],
        ["optimizer.name=adam", "++optimizer.kwargs.momentum=0.9"],
        ["optimizer.name=adamw", "++optimizer.kwargs.eta=0.1"],
        ["++optimizer.kwargs.nesterov=True", "++optimizer.kwargs.momentum=0"],
        ["method=byol"],
        ["method=simclr", "~method_kwargs", "++method_kwargs.proj_hidden_dim=8"],
        ["++backbone.kwargs.no_such_setting=1"],
        ["++data.fraction=0.01"],
        ["++data.fraction=1.5"],
        ["++min_epochs=5", "max_epochs=1", "++max_steps=0"],
        ["++barebones=True", "++enable_progress_bar=True"],
        ["++collapse.enabled=False", "++collapse.stop=True"],
        ["accelerator=gpu"],
        ["devices=30"],
        ["++num_nodes=8"],
    ]
    return _pretrain(*dice.choice(pairs))


def _broken_yaml(dice: random.Random, world: World) -> Case:
    whole = (world.configs / "small.yaml").read_bytes()
    line = dice.choice(whole.splitlines(keepends=True))
    broken = [
        whole + b"oops: [1, 2\n",
        whole + b"\tname: tab\n",
        whole + line + b"name: twice\nname: twice\n",
        whole.replace(b":", b"", 1),
        b"- a list\n- no keys\n",
        b"just words\n",
        b"\xff\xfe\x00binary" + bytes(range(256)),
        whole + b"name: \x07bell\n",
        whole + b"name: *nowhere\n",
        whole + b"name: !!python/object/apply:os.system [true]\n",
        whole + b"name: ${nowhere.at.all}\n",
        whole + b"defaults:\n  - no_such_group: nothing\n",
        b"defaults:\n  - no_such_group: nothing\n",
        b"",
    ]
    path = world.broken / f"broken{dice.randrange(10**9)}.yaml"
    path.write_bytes(dice.choice(broken))
    return _pretrain(f"--config-path={path.parent}", f"--config-name={path.name}")


def _damaged_yaml(dice: random.Random, world: World) -> Case:
    """The good file with a few bytes cut out, doubled or changed: it may stay a configuration."""
    data = bytearray((world.configs / "small.yaml").read_bytes())
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data))
        data[at : at + dice.randint(0, 6)] = bytes(
            dice.choices(b" :-[]{}'\"#\n\tabc019.", k=dice.randint(0, 4))
        )
    path = world.broken / f"damaged{dice.randrange(10**9)}.yaml"
    path.write_bytes(bytes(data))
    return _pretrain(f"--config-path={path.parent}", f"--config-name={path.name}", fails=None)


def _wrong_path(dice: random.Random, world: World) -> Case:
    key = dice.choice(["data.train_path", "data.val_path", "resume_from_checkpoint"])
    wrong = [
        "nowhere",
        "/nowhere/train",
        "''",
        str(world.configs),
        "x" * 300,
        "/dev/null",
        "~",
        ".",
    ]
    wrong += [str(world.images), str(world.checkpoint.parent), str(world.configs / "small.yaml")]
    special = [
        [f"++{key}='{dice.choice(wrong)}'"],
        ["checkpoint.dir=/dev/null/models"],
        [f"checkpoint.dir='{'x' * 300}'"],
        ["--config-name=smal.yaml"],
        ["--config-name="],
        ["--config-path=nowhere"],
        ["--config-path=/dev/null"],
        [f"--config-name={world.checkpoint}"],
    ]
    return _pretrain(*dice.choice(special[:1] * 5 + special[1:]))


def _syntax(dice: random.Random, world: World) -> Case:
    bad = [
        "max_epochs",
        "=3",
        "max_epochs=[1",
        "max_epochs={a",
        "name='half",
        "a b=1",
        "~",
        "++",
        "+=1",
    ]
    bad += [
        "--no-such-flag",
        "name=${nowhere}",
        "name=${oc.env:NO_SUCH_VARIABLE}",
        "max_epochs=${name}",
    ]
    bad += ["name=${", "optimizer.=1", ".name=1", "optimizer..lr=1", "name@=1", "data/x=1", "(=)"]
    bad += ["method_kwargs@=carp", "~~name", "max_epochs=1,2", "hydra.no=1", "+hydra/launcher=no"]
    return _pretrain(dice.choice(bad))


def _unicode(dice: random.Random, world: World) -> Case:
    odd = "".join(dice.choices(_CONTROL, k=dice.randint(1, 4)))
    word = "\\".join(odd.split("\\"))
    key = dice.choice(
        ["method", "backbone.name", "optimizer.name", "data.dataset", "data.train_path"]
    )
    quoted = "'" + word.replace("'", "") + "x'"
    return _pretrain(
        dice.choice([override(key, quoted), f"++opt{word}imizer=1", f"name='a/{word}'"]), keys=[key]
    )


#: Class -> a case of it; wrong types stand apart, for they go through all keys.
CLASSES: Dict[str, Callable[[random.Random, World], Case]] = {
    "misspelt key": _misspelt,
    "unknown choice": _unknown_choice,
    "missing key": _missing,
    "out of range": _out_of_range,
    "huge number": _huge,
    "null": _null,
    "contradiction": _contradiction,
    "broken yaml": _broken_yaml,
    "damaged yaml": _damaged_yaml,
    "wrong path": _wrong_path,
    "override syntax": _syntax,
    "unicode and control characters": _unicode,
    "main_linear.py": linear,
    "main_finetune.py": finetune,
    "main_knn.py": offline("main_knn.py", KNN),
    "main_evaluate.py": offline("main_evaluate.py", EVALUATE),
    "main_umap.py": offline("main_umap.py", UMAP),
    "main_compare.py": compare,
}
