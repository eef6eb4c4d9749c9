"""What keeps wandb from beginning a run is one sentence, said before time is spent."""

import pytest

from carp_plugin.commands.pretrain import pretrain
from carp_plugin.errors import UserError
from carp_plugin.evaluation.online import OnlineEvaluation
from tests.helpers import image_folder, small_settings


@pytest.mark.parametrize(
    "error", [RuntimeError("No API key\nconfigured."), PermissionError(13, "Permission denied")]
)
def test_wandb_that_cannot_begin_is_said_before_the_random_network_is_evaluated(
    error, tmp_path, monkeypatch
):
    def refuses(*_, **__):
        raise error

    def evaluated(*_):
        raise AssertionError("the random network was evaluated")

    monkeypatch.setattr("carp_plugin.training.run.WandbLogger", refuses)
    monkeypatch.setattr(OnlineEvaluation, "before", evaluated)
    settings = small_settings(image_folder(tmp_path / "images"), wandb={"enabled": True})
    with pytest.raises(UserError, match="cannot begin a run .*wandb.offline=True") as refused:
        pretrain(settings)
    assert "\n" not in str(refused.value)
