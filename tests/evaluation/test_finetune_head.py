"""Fine-tuning from the middle of the head, as SimCLR v2 does it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from carp_plugin.commands.finetune import finetune
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.finetune import with_head
from tests.finetune_helpers import finetune_settings
from tests.helpers import image_folder
from tests.linear_helpers import write_checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def checkpoint(images, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("pretrained") / "v2", images, "simclrv2")


def test_no_layer_is_the_backbone_and_all_of_them_are_the_projectors_output(checkpoint):
    pretrained = load_pretrained(checkpoint)
    views = torch.randn(4, 3, 16, 16)
    assert with_head(pretrained, "student", 0) is pretrained.backbone("student")
    whole = with_head(pretrained, "student", 3).eval()
    assert torch.equal(whole(views), pretrained.network("student", "projector")(views))


def test_a_layer_goes_with_its_batch_norm_and_relu(checkpoint):
    pretrained = load_pretrained(checkpoint)
    network = with_head(pretrained, "student", 1)
    assert [type(part) for part in network.head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert network.num_features == 32 and network.head[0] is pretrained.projector()[0]
    feats = network.eval()(torch.randn(4, 3, 16, 16))
    assert feats.shape == (4, 32) and feats.ge(0).all()


def test_it_trains_on_from_there_and_says_so(images, checkpoint, capsys):
    done = finetune(
        finetune_settings(images, checkpoint, head_layers=1, max_epochs=1, optimizer__lr=0.01)
    )
    theirs = torch.load(checkpoint, weights_only=True)["state_dict"]["projector.0.weight"]
    state = torch.load(done["checkpoint"], weights_only=True)["state_dict"]
    ours = state["backbone.head.0.weight"]
    assert ours.shape == theirs.shape and not torch.equal(ours, theirs)
    assert (ours - theirs).norm() < 0.5 * theirs.norm()  # it began there
    assert state["classifier.weight"].shape == (6, 32)
    assert "simclrv2 with 1 layer of its projector" in capsys.readouterr().out
    folder = Path(done["checkpoint"]).parent
    assert json.loads((folder / "summary.json").read_text())["head_layers"] == 1
    assert json.loads((folder / "args.json").read_text())["features"]["head_layers"] == 1


def test_more_layers_than_there_are_is_said(images, checkpoint):
    with pytest.raises(UserError, match="has 3 layers; give head_layers=3 or less"):
        finetune(finetune_settings(images, checkpoint, head_layers=4))


def test_a_method_without_a_projector_or_with_another_kind_is_said(images, tmp_path):
    supervised = load_pretrained(write_checkpoint(tmp_path / "one", images, "supervised"))
    with pytest.raises(UserError, match="student of supervised has no projector"):
        with_head(supervised, "student", 1)
    dino = load_pretrained(write_checkpoint(tmp_path / "other", images, "dino"))
    with pytest.raises(UserError, match="projector of dino is no sequence.*head_layers=0"):
        with_head(dino, "student", 1)


def test_random_weights_have_no_head(images, checkpoint):
    with pytest.raises(UserError, match="head_layers=1 keeps layers .* weights=random has none"):
        finetune_settings(images, checkpoint, head_layers=1, weights="random")
