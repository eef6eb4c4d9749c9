"""The learning rate of every parameter group at every step, in closed form and alike on both hosts."""

import math

import pytest
import torch

from carp_plugin.host import LinearWarmupCosineAnnealingLR
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.helpers import small_settings

STEPS = 12


def rates(schedule, optimizer, steps):
    """The rates of all groups at steps 0 to ``steps``."""
    found = []
    for _ in range(steps + 1):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def two_groups():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.4}]
    return torch.optim.SGD(groups, lr=0.1)


def expected(peak, step, warmup, start, end, total=STEPS):
    if step == 0 and warmup:
        return start
    if step < warmup:
        return start + step / (warmup - 1) * (peak - start)
    done = min(1, (step - warmup) / (total - warmup))
    return end + (1 + math.cos(math.pi * done)) / 2 * (peak - end)


@pytest.mark.parametrize("warmup", [0, 2, 4])
def test_every_group_follows_its_own_rate_down_to_the_end_and_stays_there(warmup):
    optimizer = two_groups()
    schedule = LinearWarmupCosineAnnealingLR(
        optimizer, warmup_epochs=warmup, max_epochs=STEPS, warmup_start_lr=0.01, eta_min=0.001
    )
    found = rates(schedule, optimizer, STEPS + 8)
    for step, given in enumerate(found):
        wanted = [expected(peak, step, warmup, 0.01, 0.001) for peak in (0.1, 0.4)]
        assert given == pytest.approx(wanted, rel=1e-9), step
    assert found[-1] == pytest.approx([0.001, 0.001])


@pytest.mark.parametrize("warmup", [0, 0.5])
def test_the_classifier_has_its_own_rate_with_and_without_a_warm_up(warmup, tmp_path):
    """solo-learn's own schedule begins all groups at the backbone's rate where there is no warm-up."""
    changes = {"scheduler__warmup_epochs": warmup, "optimizer__classifier_lr": 0.04}
    changes.update(optimizer__lr=0.0012, data__dataset="cifar10", optimizer__name="adamw")
    settings = small_settings(tmp_path, "carp", **changes)
    model = build_model(settings, machine_of(settings))

    class Trainer:
        estimated_stepping_batches = STEPS
        max_steps = -1
        train_dataloader = None

    model._trainer = Trainer()
    (optimizer,), (schedule,) = model.configure_optimizers()
    schedule = schedule["scheduler"]
    total = STEPS
    steps = warmup * total / settings.max_epochs
    found = rates(schedule, optimizer, 3)
    names = [group.get("name") for group in optimizer.param_groups]
    for name, given in zip(names, zip(*found)):
        peak = (0.04 if name == "classifier" else 0.0012) * 8 / 256
        for step, rate in enumerate(given):
            assert rate == pytest.approx(expected(peak, step, steps, 3e-5, 0.0), rel=1e-6), name
