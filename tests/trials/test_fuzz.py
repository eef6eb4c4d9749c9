"""A small fuzz from another seed than the trial's, through the same code: `python trials/fuzz.py` runs the whole."""

import pytest

from carp_plugin.commands.entries import FLAGGED
from carp_plugin.settings.comparison import Comparison
from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.flags import flag
from carp_plugin.settings.kinds import node
from carp_plugin.settings.linear import Linear
from carp_plugin.settings.model import walk
from carp_plugin.settings.parts import HostMethodKwargs
from carp_plugin.settings.pretraining import OWN, CarpPretraining
from trials.fuzz import fuzz, judge
from trials.fuzz_keys import OTHERS, Case, all_keys


@pytest.mark.slow
def test_broken_configurations_and_images_earn_one_sentence_each(tmp_path):
    outcomes, lost = fuzz(seed=7, configs=25, images=15, processes=0, root=tmp_path)
    assert len(outcomes) == 40 and not lost
    assert not [outcome for outcome in outcomes if not outcome.good]
    assert {outcome.verdict for outcome in outcomes} == {"refused", "done"}


def leaves_and_nodes(model):
    return {dotted for dotted, _, _ in walk(model)}


def test_the_fuzz_knows_every_key():
    """Of all models; what a linear evaluation and a comparison share with pretraining is counted there."""
    pretraining = leaves_and_nodes(CarpPretraining) - {"debug_augmentations"}
    others = [
        HostMethodKwargs,
        *(node(m.model_fields["method_kwargs"].annotation) for m in OWN.values()),
    ]
    kwargs = {f"method_kwargs.{key}" for model in others for key in model.model_fields}
    assert pretraining | kwargs <= {*all_keys(), "data", "dali", "debug_augmentations"}
    trained = (("main_linear.py", Linear), ("main_finetune.py", Finetune))
    for script, model in (*trained, ("main_compare.py", Comparison)):
        own = {key for keys in OTHERS[script].values() for key in keys}
        assert leaves_and_nodes(model) - pretraining - {"data.train_transform"} <= own | {"name"}
    for command in FLAGGED:
        leaves = (key for key, field, _ in walk(command.settings()) if not node(field.annotation))
        known = {key for keys in OTHERS[command.script].values() for key in keys}
        assert {flag(key)[2:] for key in leaves} == known


REFUSED = {"code": 2, "out": "", "err": "error: because.\n"}


@pytest.mark.parametrize(
    "fails, change, verdict",
    [
        (True, {}, "refused"),
        (None, {}, "refused"),
        (False, {}, "FAILED: refused"),
        (True, {"code": 0, "err": ""}, "FAILED: not refused"),
        (None, {"code": 0, "err": "warning: x\n"}, "done"),
        (True, {"code": None, "err": "no answer"}, "FAILED: no answer"),
        (True, {"code": 1}, "FAILED: exit code 1"),
        (True, {"err": "Traceback (most recent call last)\nerror: x\n"}, "FAILED: stack trace"),
        (True, {"err": "error: x\nerror: y\n"}, "FAILED: not one line"),
        (True, {"err": "usage: x\nerror: y\n"}, "FAILED: not one line"),
        (True, {"err": ""}, "FAILED: not one line"),
        (True, {"err": "warning: x\nerror: y\n"}, "refused"),
    ],
)
def test_the_judge_sees_what_is_wrong(fails, change, verdict):
    case = Case("", "main_pretrain.py", [], fails)
    assert judge(case, {**REFUSED, **change})[0] == verdict


def test_an_image_must_be_named():
    case = Case("image: x", "main_pretrain.py", [], True, ["a/odd.png"])
    assert judge(case, REFUSED)[0] == "FAILED: file not named"
    assert judge(case, {**REFUSED, "err": "error: a/odd.png is torn\n"})[0] == "refused"
