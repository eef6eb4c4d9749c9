"""Checkpoints: found, read without running code, and loaded with all of their tensors or not at all."""

import argparse
import json
import os
import pickle
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import agrees, load_pretrained
from carp_plugin.host.cfg import plain
from carp_plugin.training.callbacks.checkpoint import check_checkpoint
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from carp_plugin.training.state import find_checkpoint, read_state_dict
from tests.helpers import image_folder, small_settings
from tests.linear_helpers import write_checkpoint

FULL_WIDTH = True  # of ResNets: tests/conftest.py


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=2)


@pytest.fixture(scope="module")
def byol(tmp_path_factory, images):
    """A run's folder with a checkpoint of BYOL, and the model that it is of."""
    return written(tmp_path_factory.mktemp("byol"), images, "byol")


def written(folder, images, method, epoch=3, **extra):
    """What a training run leaves behind, without the training."""
    torch.manual_seed(0)
    settings = small_settings(images, method, checkpoint__enabled=False)
    model = build_model(settings, machine_of(settings))
    (folder / "args.json").write_text(json.dumps(plain(model.cfg)))
    content = {"state_dict": {**model.state_dict(), **extra}, "epoch": epoch}
    torch.save(content, folder / f"run-ep={epoch}.ckpt")
    return folder, model


def changed(byol, folder, change):
    """A copy of BYOL's run with its tensors changed in place."""
    shutil.copy(byol[0] / "args.json", folder)
    content = torch.load(byol[0] / "run-ep=3.ckpt", weights_only=True)
    change(content["state_dict"])
    torch.save(content, folder / "run-ep=3.ckpt")
    return folder


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


#: With and without a teacher, a queue of its own, and a projector under another name (dino).
METHODS = (
    "barlow_twins byol carp dino infomin mocov2plus pclv2 selav2 simclrv2 simsiam swav".split()
)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_comes_back_whole(method, tmp_path, images):
    folder, model = written(tmp_path, images, method)
    torch.manual_seed(1)  # a network left random would differ
    found = load_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    total = len(model.state_dict())
    assert found.sentence == (
        f"{total} of {total} tensors loaded from {folder / 'run-ep=3.ckpt'} ({method}, epoch 3)"
    )
    assert (found.method, found.epoch, found.tensors) == (method, 3, total)
    views = torch.randn(4, 3, 16, 16)
    model.eval()
    for which in found.networks:
        with torch.no_grad():
            feats = found.network(which)(views)
            embedded = found.network(which, "projector")(views)
        prefix = {"student": "", "teacher": "momentum_"}[which]
        backbone = getattr(model, f"{prefix}backbone")
        assert torch.allclose(feats, backbone(views), atol=1e-5)
        assert feats.shape == (4, 512) and embedded.shape[0] == 4 and embedded.dim() == 2
        assert not torch.equal(embedded, feats)


def test_networks_are_student_and_teacher_where_there_is_one(byol, tmp_path, images):
    teacher = load_pretrained(byol[0])
    assert teacher.networks == ("student", "teacher")
    assert teacher.backbone("teacher") is teacher.model.momentum_backbone
    alone = load_pretrained(written(tmp_path, images, "simsiam")[0])
    assert alone.networks == ("student",)
    with pytest.raises(UserError, match=r"simsiam has no teacher; it has student\."):
        alone.network("teacher")
    with pytest.raises(UserError, match="features=feats is unknown"):
        alone.network("student", "feats")


def test_a_method_without_projector_says_so(byol):
    found = load_pretrained(byol[0])
    del found.model.projector
    assert not found.has_projector("student") and found.has_projector("teacher")
    with pytest.raises(UserError, match="student of byol has no projector"):
        found.network("student", "projector")


def test_training_buffers_are_left_out_by_name_and_said(tmp_path, images):
    folder, _ = written(tmp_path, images, "swav", queue=torch.zeros(2, 16, 16))
    found = load_pretrained(folder)
    assert found.sentence.endswith("; not needed after training and left out: queue")
    folder, _ = written(tmp_path, images, "swav", another=torch.zeros(2))
    with pytest.raises(UserError, match=r"1 left over \(another\)"):
        load_pretrained(folder)


def lose_a_teacher(state):
    for key in [key for key in state if key.startswith("momentum_projector")]:
        del state[key]


def widen_the_stem(state):
    state["backbone.conv1.weight"] = torch.zeros(64, 3, 3, 3)


@pytest.mark.parametrize(
    "change, says",
    [
        (lose_a_teacher, r"\d+ missing \(momentum_projector\.0\.weight, .*, …\)"),
        (widen_the_stem, r"1 of another shape \(backbone.conv1.weight\); name another backbone"),
        (lambda s: s.pop("projector.0.bias"), r"268 of 269 tensors fit, 1 missing \(projector"),
        (lambda s: s.update(queue_ptr=torch.ones(1)), r"269 of 269 .*1 left over \(queue_ptr\)"),
    ],
)
def test_tensors_that_do_not_fit_are_counted_and_named(byol, tmp_path, change, says):
    with pytest.raises(UserError, match=says) as error:
        load_pretrained(changed(byol, tmp_path, change))
    assert "byol on resnet18" in one_sentence(error)


def test_a_resumed_run_is_checked_alike(byol, tmp_path):
    folder = changed(byol, tmp_path, widen_the_stem)
    with pytest.raises(UserError, match="holds weights but no pytorch-lightning_version"):
        check_checkpoint(byol[0] / "run-ep=3.ckpt", byol[1])  # its tensors are all there
    with pytest.raises(UserError, match="is of another model: 268 of 269 tensors fit"):
        check_checkpoint(folder / "run-ep=3.ckpt", byol[1])


class Malicious:
    def __reduce__(self):
        return os.system, ("touch ran",)


def torn(path, whole):
    path.write_bytes(whole[: len(whole) // 2])


UNREADABLE = [
    ("torn", torn, "it is torn or no checkpoint"),
    ("empty", lambda path, _: path.write_bytes(b""), "it is torn or no checkpoint"),
    ("a text", lambda path, _: path.write_text("hello world"), "it is torn or no checkpoint"),
    (
        "code in a zip",
        lambda path, _: torch.save({"state_dict": Malicious()}, path),
        r"refused: .*\.system, which could run code .*nothing was run",
    ),
    (
        "code in a pickle",
        lambda path, _: path.write_bytes(pickle.dumps(Malicious(), protocol=2)),
        r"refused|no checkpoint",
    ),
    (
        "a foreign object",
        lambda path, _: torch.save({"state_dict": {}, "args": argparse.Namespace(a=1)}, path),
        r"refused: .*argparse.Namespace",
    ),
    (
        "no state_dict",
        lambda path, _: torch.save({"model": {}, "epoch": 1}, path),
        r"no 'state_dict' of tensors \(it holds model, epoch\)",
    ),
    (
        "a bare tensor",
        lambda path, _: torch.save(torch.ones(2), path),
        r"no 'state_dict' of tensors \(it holds a Tensor\)",
    ),
]


@pytest.mark.parametrize("write, says", [u[1:] for u in UNREADABLE], ids=[u[0] for u in UNREADABLE])
def test_what_cannot_be_read_earns_one_sentence_and_runs_nothing(write, says, byol, tmp_path):
    path = tmp_path / "bad.ckpt"
    write(path, (byol[0] / "run-ep=3.ckpt").read_bytes())
    with pytest.raises(UserError, match=says) as error:
        read_state_dict(path)
    assert str(path) in one_sentence(error)
    assert not os.path.exists("ran")


def test_settings_that_the_host_leaves_in_a_checkpoint_are_read(tmp_path):
    content = {"state_dict": {"a": torch.ones(2)}}
    content["optimizer_states"] = [OmegaConf.create({"betas": [0.9, 0.999]}).betas]
    torch.save(content, tmp_path / "host.ckpt")
    assert read_state_dict(tmp_path / "host.ckpt")["a"].tolist() == [1, 1]


def test_checkpoints_of_torch_1_5_are_read(tmp_path):
    content = {"state_dict": {"a": torch.ones(2)}}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "old.pth")["a"].tolist() == [1, 1]


def test_a_folder_means_its_last_epoch(tmp_path):
    for epoch in (2, 10, 9):
        (tmp_path / f"run-ep={epoch}.ckpt").touch()
    assert find_checkpoint(tmp_path).name == "run-ep=10.ckpt"
    (tmp_path / "other-epoch=10-step=3.ckpt").touch()
    with pytest.raises(UserError, match=r"several .*other-epoch=10-step=3.ckpt, run-ep=10.ckpt"):
        find_checkpoint(tmp_path)


def test_a_typo_is_told_from_a_missing_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a-ep=0.ckpt").touch()
    for given, says in [
        ("rum", r"rum does not exist; did you mean 'run'\?"),
        ("run/a-ep=00.ckpt", r"did you mean 'a-ep=0.ckpt'"),
        ("far/away", r"nor does the folder \S*far; check the spelling"),
        (".", r"holds no .ckpt file; give one of its runs: \S*run$"),
    ]:
        with pytest.raises(UserError, match=says):
            find_checkpoint(tmp_path / given)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes.txt is no checkpoint; give a .ckpt"):
        find_checkpoint(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "change, says",
    [
        (None, r"no args.json beside"),
        ("{", r"args.json cannot be read"),
        ("[1]", r"must hold the keys"),
        ({"method": None}, r"has no method"),
        ({"method": "byoll"}, r"names method=byoll, .*did you mean 'byol'"),
        ({"backbone": "resnet18"}, r"has no backbone.name; expected the configuration"),
        ({"backbone": {"name": "resnet19"}}, r"backbone.name=resnet19, .*did you mean 'resnet18'"),
        ({"method_kwargs": {}}, r"does not build a byol|of another shape"),
    ],
)
def test_a_configuration_that_builds_nothing_earns_one_sentence(byol, tmp_path, change, says):
    folder = changed(byol, tmp_path, lambda state: None)
    args = folder / "args.json"
    if change is None:
        args.unlink()
    elif isinstance(change, str):
        args.write_text(change)
    else:
        args.write_text(json.dumps({**json.loads(args.read_text()), **change}))
    with pytest.raises(UserError, match=says) as error:
        load_pretrained(folder)
    assert str(folder) in one_sentence(error)


@pytest.mark.parametrize(
    "word, who", [("_orig_mod", "torch.compile"), ("module", "DistributedDataParallel")]
)
@pytest.mark.parametrize("place", ["{word}.{name}", "{first}.{word}.{rest}"])
def test_the_prefix_of_a_wrapper_is_named_with_what_to_do(word, who, place, images, tmp_path):
    path = write_checkpoint(tmp_path / "run", images)
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {
        place.format(word=word, name=name, first=name.split(".")[0], rest=name.partition(".")[2]): t
        for name, t in content["state_dict"].items()
    }
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"hold `{word}.`, which {who}.*save model.{word}.state_"):
        load_pretrained(path)


@pytest.mark.parametrize("disabled", [False, True])
def test_the_memory_format_is_that_of_the_training(disabled, byol, tmp_path):
    folder = changed(byol, tmp_path, lambda state: None)
    args = json.loads((folder / "args.json").read_text())
    args["performance"] = {"disable_channel_last": disabled}
    (folder / "args.json").write_text(json.dumps(args))
    weight = load_pretrained(folder).backbone().layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (not disabled)


def test_what_settings_name_of_a_checkpoint_must_agree_with_it(byol):
    pretrained = load_pretrained(byol[0])
    agrees(pretrained, {"pretrain_method": "byol", "backbone.name": None})
    with pytest.raises(UserError, match="backbone.name=resnet50, but .* holds resnet18"):
        agrees(pretrained, {"pretrain_method": None, "backbone.name": "resnet50"})
