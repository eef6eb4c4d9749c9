"""The keys as a page, as a JSON schema for editors, and on the terminal: all written from the models.

python -m carp_plugin.settings.reference        # writes docs/configuration.md and docs/schema/*.json again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple, Type

from pydantic import BaseModel

from carp_plugin.errors import UserError, did_you_mean
from carp_plugin.settings import kinds
from carp_plugin.settings.comparison import Comparison, EveryKey
from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.linear import Linear
from carp_plugin.settings.mistakes import known_keys
from carp_plugin.settings.model import extra_of, walk
from carp_plugin.settings.offline import Knn, Umap
from carp_plugin.settings.parts import HostMethodKwargs
from carp_plugin.settings.pretraining import OWN, CarpPretraining
from carp_plugin.settings.protocols import Evaluate
from carp_plugin.settings.trainer import Run, Trainer


class Row(NamedTuple):
    """A key as a table shows it.

    Attributes:
        key: dotted.
        kind: type and range, in words.
        default: as YAML writes it; "required" where it must be given.
        meaning: one line, with the unit.
        identity: whether two runs that differ in it are two.
    """

    key: str
    kind: str
    default: str
    meaning: str
    identity: bool


def rows(model: Type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """Every leaf of a model."""
    for dotted, field, identity in walk(model):
        items = kinds.item(field.annotation)
        if kinds.node(field.annotation) or (items is not None and kinds.node(items)):
            continue
        unit = extra_of(field).get("unit", "")
        default = "required" if field.is_required() else kinds.shown(field.get_default())
        words = kinds.words_of(field)
        meaning = f"{field.description}{f' [{unit}]' if unit else ''}"
        yield Row(prefix + dotted.replace(".0.", "[].", 1), words, default, meaning, identity)


def say_keys(model: Type[BaseModel], words: Sequence[str]) -> None:
    """Prints the keys that have all of the words in their name or meaning.

    Raises:
        UserError: there is none.
    """
    from rich.table import Table

    from carp_plugin.terminal import say

    found = [
        row
        for row in rows(model)
        if all(word.lower() in f"{row.key} {row.meaning}".lower() for word in words)
    ]
    if not found:
        word = " ".join(words)
        raise UserError(f"no key has {word!r} in it{did_you_mean(word, known_keys(model))}")
    table = Table(box=None, padding=(0, 1))
    for column in ("key", "default", "must be", "meaning"):
        table.add_column(column, no_wrap=column == "key", overflow="fold")
    for row in found:
        table.add_row(row.key, row.default, row.kind, row.meaning)
    say(table)


_HEAD = """# Configuration

Every key, with its type, its default and its meaning. `python -m carp_plugin.settings.reference` writes this page from
the models in `carp_plugin/settings/`; a test keeps it current.

A key is set in YAML or as `key=value` on the command line: `max_epochs=5`, `optimizer.lr=0.1`, `data.train_path=PATH`.
A path is typed as it is; `~` and `$HOME` are put in once. Null means the default where null is no value of the key's.
`main_pretrain.py --keys WORD` prints the keys that have WORD in them.

Two runs that differ in a key marked ● are two runs; resuming compares those. Rates are for 256 images, and what the
optimizer is given follows: `optimizer.lr` x global batch / 256.

Editors complete and check the keys by the JSON schemas in `docs/schema/`: VS Code those of the recipes in
`scripts/` by itself (`.vscode/settings.json`, with its YAML extension), and those of any file that begins with
`# yaml-language-server: $schema=PATH/docs/schema/pretraining.json` (or `linear.json`, `finetuning.json`,
`comparison.json`).
"""


#: Keys of a fine-tuning that are called as a pretraining's and mean something else.
_OTHERWISE = (
    "optimizer.name optimizer.lr optimizer.classifier_lr optimizer.weight_decay scheduler.name "
    "scheduler.lr_decay_steps backbone.name backbone.kwargs"
).split()


class Section(NamedTuple):
    """A part of the page."""

    title: str
    about: str
    found: List[Row]


def _sections() -> List[Section]:
    trainer = set(Trainer.model_fields)
    every = list(rows(CarpPretraining))
    shared = {row.key for row in rows(Run)}
    own = [row for row in every if row.key not in shared]
    linear = [row for row in rows(Linear) if row.key not in {r.key for r in every}]
    tuned = [
        row
        for row in rows(Finetune)
        if row.key not in {r.key for r in every} or row.key in _OTHERWISE
    ]
    return [
        Section("Every run", "Pretraining, linear evaluation and fine-tuning.", [
            row for row in every if row.key in shared and row.key not in trainer]),
        Section("Lightning's trainer", "Keys at the top, handed on; null is Lightning's own default.", [
            row for row in every if row.key in trainer]),
        Section("Pretraining", "`main_pretrain.py`; `method_kwargs` are CARP's.", own),
        Section("Our other methods", "Keys of `method_kwargs`, each with the method that has it.", _of_methods()),
        Section("The host's methods", "Keys of `method_kwargs` of the host's methods. Which method has which, and its "
                "defaults, the installed solo-learn knows; a key that it does not have is refused by name.",
                [row._replace(default="the host's") for row in rows(HostMethodKwargs, "method_kwargs.")]),
        Section("Linear evaluation", "`main_linear.py`: these, and those of every run, of `data` (with `val_path` "
                "required), `optimizer` (without `classifier_lr`) and `dali.device`.", linear),
        Section("Fine-tuning", "`main_finetune.py`: these, and those of every run, of `data` (with `val_path` "
                "required, no `fraction`), `optimizer.batch_size`, `optimizer.kwargs` and `dali.device`.", tuned),
        Section("Comparison", "`main_compare.py`: these, and those of a pretraining, the same for every method.",
                list(rows(Comparison))),
        Section("k-NN", "Flags of `main_knn.py`, as `--k 20 200`.", [
            row._replace(key=row.key.replace("json_file", "json")) for row in rows(Knn)]),
        Section("Protocols on frozen features", "Flags of `main_evaluate.py`, as `--protocols knn --knn.k 20`.", [
            row._replace(key=row.key.replace("json_file", "json")) for row in rows(Evaluate)]),
        Section("UMAP", "Flags of `main_umap.py`.", list(rows(Umap))),
    ]  # fmt: skip


def _of_methods() -> List[Row]:
    """The keys of our methods besides CARP, each with its method before its meaning."""
    found = []
    for name, model in OWN.items():
        below = kinds.node(model.model_fields["method_kwargs"].annotation)
        if model is not CarpPretraining and below is not None:
            found += [
                row._replace(meaning=f"{name}: {row.meaning}")
                for row in rows(below, "method_kwargs.")
            ]
    return found


def page() -> str:
    """``docs/configuration.md``."""
    parts = [_HEAD]
    for section in _sections():
        parts.append(f"\n## {section.title}\n\n{section.about}\n")
        for node, found in _by_node(section.found):
            title = f"\n### {node}\n" if node else ""
            parts.append(
                f"{title}\n| key | must be | default | | meaning |\n| --- | --- | --- | --- | --- |\n"
            )
            for row in found:
                cells = (
                    f"`{row.key}`",
                    row.kind,
                    f"`{row.default}`",
                    "●" * row.identity,
                    row.meaning,
                )
                parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _by_node(found: Sequence[Row]) -> List[Tuple[str, List[Row]]]:
    """Rows by their first node, in the order that nodes come in; leaves at the top first."""
    groups: Dict[str, List[Row]] = {"": []}
    for row in found:
        head = row.key.split(".")[0].removesuffix("[]") if "." in row.key else ""
        groups.setdefault(head, []).append(row)
    return [(node, rows_) for node, rows_ in groups.items() if rows_]


#: File below docs/schema -> the model that it describes.
SCHEMAS: Dict[str, Type[BaseModel]] = {
    "pretraining.json": CarpPretraining,
    "linear.json": Linear,
    "finetuning.json": Finetune,
    "comparison.json": EveryKey,
}


def schema(model: Type[BaseModel]) -> Dict[str, Any]:
    """JSON schema of the YAML files of a model; nothing is required, for files take in others.

    Hydra's own keys are allowed, and interpolations in place of any value.
    """
    made = model.model_json_schema()
    kwargs = made["properties"].get("method_kwargs")
    if kwargs is not None:  # those of any method: a file may leave open which
        hosts = HostMethodKwargs.model_json_schema()
        hosts["additionalProperties"] = False
        made["$defs"]["HostMethodKwargs"] = hosts
        names = ["CarpKwargs"]
        for own in OWN.values():
            below: Any = kinds.node(own.model_fields["method_kwargs"].annotation)
            if below.model_fields and below.__name__ not in names:
                made["$defs"][below.__name__] = below.model_json_schema()
                names.append(below.__name__)
        kwargs.pop("$ref", None)
        kwargs["anyOf"] = [{"$ref": f"#/$defs/{name}"} for name in (*names, "HostMethodKwargs")]
    _loosen(made)
    made["properties"].update(defaults={"type": "array"}, hydra={"type": "object"})
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return made


def _loosen(node: Any) -> None:
    if isinstance(node, list):
        for below in node:
            _loosen(below)
    if not isinstance(node, dict):
        return
    node.pop("required", None)
    node.pop("title", None)
    for name in ("identity", "unit"):
        if not isinstance(node.get(name), dict):
            node.pop(name, None)
    for below in list(node.values()):
        _loosen(below)
    for name, value in list((node.get("properties") or {}).items()):
        if "$ref" not in value and "const" not in value:
            words = {k: value.pop(k) for k in ("description", "default") if k in value}
            text = {"type": "string", "pattern": r"^(\?\?\?|.*\$\{.*)$"}
            node["properties"][name] = {**words, "anyOf": [value, text, {"type": "null"}]}


def write(root: Path) -> List[Path]:
    """Writes the page and the schemas below ``root``/docs."""
    files = {root / "docs" / "configuration.md": page()}
    for name, model in SCHEMAS.items():
        text = json.dumps(schema(model), indent=1, ensure_ascii=False) + "\n"
        files[root / "docs" / "schema" / name] = text
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return list(files)


if __name__ == "__main__":
    for written in write(Path(__file__).resolve().parents[2]):
        print(written)
