"""The models of the settings: every key once, of its kind, frozen, and as the host and Lightning have it."""

import inspect

import pytest
from lightning.pytorch import Trainer as LightningTrainer
from pydantic import ValidationError

from carp_plugin.errors import UserError
from carp_plugin.host import METHODS, method_keys
from carp_plugin.methods.known import check_optimizer, check_pretraining, optimizer_kwargs
from carp_plugin.settings import kinds
from carp_plugin.settings.comparison import Comparison, EveryKey
from carp_plugin.settings.finetune import Finetune
from carp_plugin.settings.kinds import node
from carp_plugin.settings.linear import Linear
from carp_plugin.settings.methods import PclKwargs, SelaKwargs
from carp_plugin.settings.model import Settings, defaults_of, field_at, free_keys, walk
from carp_plugin.settings.offline import Knn, Umap
from carp_plugin.settings.parts import CarpKwargs, HostMethodKwargs, Optimizer, OptimizerKwargs
from carp_plugin.settings.pretraining import OWN, CarpPretraining, Pretraining
from carp_plugin.settings.protocols import Evaluate
from carp_plugin.settings.trainer import NOT_FROM_A_FILE, Trainer
from carp_plugin.training.devices import machine_of
from tests.helpers import image_folder, small_settings

MODELS = [*OWN.values(), Pretraining, Linear, Finetune, Comparison, Knn, Umap, Evaluate]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_meaning_and_words_for_its_kind(model):
    for dotted, field, _ in walk(model):
        assert field.description and field.description == field.description.strip(), dotted
        assert kinds.words_of(field), dotted


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_default_is_a_value_of_its_key(model):
    """Or a default would be refused where a user writes it out."""
    for name, field in model.model_fields.items():
        if field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        parent = {name: default.model_dump() if isinstance(default, Settings) else default}
        with pytest.raises(ValidationError) as caught:
            model.model_validate({**parent, "no_such_key": 1})
        assert name not in {str(error["loc"][0]) for error in caught.value.errors()}


def test_every_argument_of_lightnings_trainer_is_a_key_or_ours():
    known = set(inspect.signature(LightningTrainer).parameters) - set(NOT_FROM_A_FILE)
    assert known <= set(Trainer.model_fields)


@pytest.mark.parametrize("key", ["logger", "callbacks", "plugins", "self"])
def test_what_is_ours_of_the_trainer_is_no_key(key, tmp_path):
    with pytest.raises(UserError, match=f"{key} is not a key of the configuration"):
        small_settings(tmp_path, **{key: 1})


def test_settings_are_frozen(tmp_path):
    settings = small_settings(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        settings.optimizer.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_epochs = 7
    assert isinstance(settings.augmentations, tuple)


def test_what_the_user_wrote_stays(tmp_path):
    settings = small_settings(tmp_path, optimizer__lr=0.3, devices=2, num_nodes=2)
    values = settings.values()
    assert values["optimizer"]["lr"] == 0.3 and values["devices"] == 2
    again = type(settings).model_validate(values)
    assert again.values() == values


def test_a_null_node_is_as_if_left_out(tmp_path):
    left_out = small_settings(tmp_path)
    null = small_settings(tmp_path, evaluation=None, collapse=None, auto_resume=None)
    assert null == left_out
    assert small_settings(tmp_path, checkpoint=None).checkpoint.enabled is False
    assert small_settings(tmp_path, momentum=None).momentum.base_tau == 0.99


def test_a_null_setting_is_its_default(tmp_path):
    settings = small_settings(tmp_path, seed=None, accumulate_grad_batches=None)
    assert settings.seed == 5 and settings.accumulate_grad_batches == 1
    assert small_settings(tmp_path, data__max_bad_fraction=None).data.max_bad_fraction == 0.01


def test_the_word_none_is_null(tmp_path):
    assert small_settings(tmp_path, data__val_path="None").data.val_path is None


def test_images_that_lightning_would_put_in_its_own_order_are_refused(tmp_path):
    with pytest.raises(UserError, match="overfit_batches must be 0, .*limit_train_batches"):
        small_settings(tmp_path, overfit_batches=1)


def test_a_card_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for devices, card in ((3, 2), ([0, 7], 7), ("0,2", 2)):
        with pytest.raises(
            UserError, match=f"names card {card}, counted from 0, but 2 are visible"
        ):
            machine_of(small_settings(tmp_path, accelerator="gpu", devices=devices))


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_every_setting_of_an_optimizer_is_a_key(name):
    assert optimizer_kwargs(name) <= set(OptimizerKwargs.model_fields)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"base", "linear"}))
def test_every_setting_of_a_method_has_a_kind(name):
    own = OWN.get(name)
    model = node(own.model_fields["method_kwargs"].annotation) if own else HostMethodKwargs
    assert method_keys(name) - {"partition_size"} <= set(model.model_fields)


@pytest.mark.parametrize(
    "name, model", [("carp", CarpKwargs), ("pclv2", PclKwargs), ("selav2", SelaKwargs)]
)
def test_our_methods_take_all_their_keys_from_their_models(name, model):
    """The method reads nothing that the model does not have, and the model has nothing that it does not read."""
    assert method_keys(name) - {"partition_size"} <= set(model.model_fields)
    source = inspect.getsource(METHODS[name])
    assert all(f"kwargs.{key}" in source for key in model.model_fields)


def test_optimizers_take_their_own_settings_only(tmp_path):
    check_optimizer(small_settings(tmp_path, optimizer__kwargs={"nesterov": True}).optimizer)
    with pytest.raises(UserError, match=r"kwargs.eta is not a key of sgd; choose from"):
        check_optimizer(small_settings(tmp_path, optimizer__kwargs={"eta": 0.1}).optimizer)


@pytest.mark.parametrize(
    "name, kwargs, says",
    [
        ("sgd", {"nesterov": True, "momentum": 0.0}, "Nesterov momentum requires a momentum"),
        ("adam", {"fused": True, "foreach": True}, "`fused` and `foreach` cannot be"),
        ("lars", {"nesterov": True, "dampening": 0.5}, "Nesterov"),
    ],
)
def test_settings_of_an_optimizer_that_do_not_go_together_are_said(name, kwargs, says, tmp_path):
    changes = {"optimizer__name": name, "optimizer__kwargs": kwargs}
    with pytest.raises(UserError, match=f"{name} refuses optimizer.kwargs: .*{says}"):
        check_optimizer(small_settings(tmp_path, **changes).optimizer)


def test_only_what_was_given_of_somebody_elses_keys_is_handed_on():
    given = {"name": "sgd", "batch_size": 8, "lr": 1, "weight_decay": 0}
    assert Optimizer(**given).model_dump()["kwargs"] == {}
    with_momentum = Optimizer(**given, kwargs={"momentum": 0.5, "nesterov": None})
    assert with_momentum.model_dump()["kwargs"] == {"momentum": 0.5}
    assert HostMethodKwargs(queue_size=4, own=1).model_dump() == {"queue_size": 4, "own": 1}


def test_the_hosts_methods_are_checked_against_the_host(tmp_path):
    images = image_folder(tmp_path)
    check_pretraining(small_settings(images, "byol"))
    with pytest.raises(UserError, match="method=byoll is unknown; did you mean 'byol'"):
        check_pretraining(small_settings(images, "byol").model_copy(update={"method": "byoll"}))
    with pytest.raises(UserError, match="method_kwargs.num_prototypes is not a key of byol"):
        check_pretraining(small_settings(images, "byol", method_kwargs__num_prototypes=8))
    with pytest.raises(UserError, match="resnet81 is unknown; did you mean 'resnet18'"):
        check_pretraining(small_settings(images, "byol", backbone__name="resnet81"))


def test_a_key_is_found_by_its_place():
    assert field_at(CarpPretraining, "augmentations.0.rrc.enabled").annotation is bool
    assert field_at(CarpPretraining, "optimizer.no") is None
    assert field_at(CarpPretraining, "max_epochs.x") is None
    assert field_at(CarpPretraining, "augmentations.0").description == (
        field_at(CarpPretraining, "augmentations").description
    )


def test_what_watches_a_run_makes_it_no_other_run():
    free = set(free_keys(CarpPretraining))
    assert {"checkpoint.dir", "wandb", "evaluation.k", "data.num_workers", "profiler"} <= free
    assert not {"data.train_path", "optimizer.lr", "seed", "method_kwargs.partition"} & free


def test_every_leaf_with_a_default_is_known_by_it():
    defaults = defaults_of(CarpPretraining)
    assert defaults["method_kwargs.partition_size"] == 512 and defaults["seed"] == 5
    assert "optimizer.lr" not in defaults and "optimizer" not in defaults


def test_a_comparison_knows_the_keys_of_both():
    assert {"methods", "trials", "optimizer", "max_epochs", "data"} <= set(EveryKey.model_fields)
