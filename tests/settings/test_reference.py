"""The page and the schemas are those of the models, and a key is found on the terminal."""

import json

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from carp_plugin.commands.entries import COMPARE, FINETUNE, LINEAR, PRETRAIN
from carp_plugin.settings import reference
from carp_plugin.settings.mistakes import known_keys
from carp_plugin.settings.pretraining import CarpPretraining
from tests.run_cli import ROOT

KINDS = {
    "pretrain": "pretraining.json",
    "linear": "linear.json",
    "finetune": "finetuning.json",
    "compare": "comparison.json",
    "ablation": "comparison.json",
}
RECIPES = sorted((ROOT / "scripts").rglob("*.yaml"))


def test_page_and_schemas_are_current(tmp_path):
    """If this fails: python -m carp_plugin.settings.reference"""
    for path in reference.write(tmp_path):
        kept = ROOT / path.relative_to(tmp_path)
        assert kept.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), kept


def test_the_page_has_every_key_with_its_default():
    page = reference.page()
    for row in reference.rows(CarpPretraining):
        assert f"| `{row.key}` |" in page, row.key
    assert "| `method_kwargs.partition_size` | a whole number of at least 1 | `512` | ● |" in page
    assert "| `checkpoint.dir` | a path | `trained_models` |  |" in page
    assert (
        "| `k` | a list of items, each a whole number of at least 1 | `[10, 20, 100, 200]` |"
        in page
    )
    assert "| `augmentations[].rrc.crop_min_scale` |" in page


def problems(value, schema, root, path=""):
    """What of a value a schema does not take: the part of JSON schema that ours use."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        found = [problems(value, one, root, path) for one in schema["anyOf"]]
        return [] if [] in found else [f"{path}: none of {len(found)} kinds"]
    if "const" in schema and value != schema["const"]:
        return [f"{path}: not {schema['const']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: not among {schema['enum']}"]
    names = {
        "object": dict,
        "array": (list, tuple),
        "string": str,
        "boolean": bool,
        "null": type(None),
    }
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if (kind in ("integer", "number") and number) or isinstance(value, names.get(kind, ())):
            break
    else:
        if kinds:
            return [f"{path}: not {kinds}"]
    found = []
    if isinstance(value, dict) and "properties" in schema:
        for key, below in value.items():
            if key in schema["properties"]:
                found += problems(below, schema["properties"][key], root, f"{path}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{path}.{key}: unknown")
    if isinstance(value, list) and "items" in schema and isinstance(schema["items"], dict):
        for i, below in enumerate(value):
            found += problems(below, schema["items"], root, f"{path}[{i}]")
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "scripts")))
def test_the_schema_takes_every_recipe_as_written_and_as_composed(path):
    kind = path.relative_to(ROOT / "scripts").parts[0]
    schema = json.loads((ROOT / "docs" / "schema" / KINDS[kind]).read_text())
    assert problems(yaml.safe_load(path.read_text()), schema, schema) == []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        composed = OmegaConf.to_container(compose(path.name))
    GlobalHydra.instance().clear()
    if path.name == "photos_search.yaml":
        composed.pop("trials")  # of dotted keys
    assert problems(composed, schema, schema) == []


@pytest.mark.parametrize(
    "value", [{"max_epoch": 1}, {"optimizer": {"lrr": 1}}, {"optimizer": {"lr": [1]}}, {"data": 3}]
)
def test_the_schema_refuses_a_slip(value):
    schema = reference.schema(CarpPretraining)
    assert problems(value, schema, schema)


@pytest.mark.parametrize("command", [PRETRAIN, LINEAR, FINETUNE, COMPARE], ids=lambda c: c.name)
def test_help_names_recipes_and_keys(command, capsys):
    command.main(["--help"])
    said = capsys.readouterr().out
    assert "carp.yaml" in said or "photos.yaml" in said
    assert "max_epochs" in said and "--keys [WORD]" in said and "--config-name NAME" in said


def test_keys_are_found_by_a_word_of_their_name_or_meaning(capsys):
    PRETRAIN.main(["--keys", "tau"])
    said = capsys.readouterr().out
    assert "momentum.base_tau" in said and "evaluation.temperature" in said
    assert "0.99" in said and "a number between 0 and 1" in said and "seed" not in said
    PRETRAIN.main(["--keys"])
    said = capsys.readouterr().out
    assert all(key.split(".")[-1] in said for key in known_keys(CarpPretraining))
    with pytest.raises(SystemExit) as left:
        PRETRAIN.main(["--keys", "partition_sise"])
    assert left.value.code == 2
    assert "no key has 'partition_sise' in it" in capsys.readouterr().err
