"""Whole trainings on several gloo ranks: same weights, same steps, what is printed is what is done."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from carp_plugin.losses import carp_objective_func
from carp_plugin.methods.carp import Prototypes
from carp_plugin.partition import random_partition
from tests.distributed import run_on_ranks
from tests.helpers import image_folder, write_image
from tests.rank_runs import trained

IMAGES, BATCH, K = (
    31,
    5,
    32,
)  # 31 images are no multiple of the ranks, a rank's share none of the batch
COMMON = {
    "optimizer__batch_size": BATCH,
    "scheduler__warmup_epochs": 0,
    "scheduler__min_lr": 0.001,
    "evaluation": {"enabled": False},
}
RUNS = {
    "whole": {**COMMON, "evaluation": {"enabled": True, "k": 5, "frequency": 1}},
    "accumulated": {**COMMON, "accumulate_grad_batches": 2},
    "plain path": {**COMMON, "max_epochs": 1, "method_kwargs__fused": False},
}
#: (ranks, run), of which each is done once.
DONE = [(1, "accumulated"), *((2, name) for name in RUNS), (4, "accumulated")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 training images and one."""
    root = image_folder(tmp_path_factory.mktemp("images"), per_class=5)
    write_image(root / "train" / "class_0" / "extra.png", seed=999)
    return root


@pytest.fixture(scope="module")
def found(images, tmp_path_factory):
    """{(ranks, run): [what each rank saw]}, and the folder that each number of ranks ran in."""
    saw, folders = {}, {}
    for world_size in sorted({world_size for world_size, _ in DONE}):
        folders[world_size] = tmp_path_factory.mktemp(f"ranks-{world_size}")
        runs = {name: RUNS[name] for ranks, name in DONE if ranks == world_size}
        arguments = (world_size, images, folders[world_size], runs)
        answers = run_on_ranks(trained, world_size, folders[world_size], *arguments, timeout=300)
        for name in runs:
            saw[world_size, name] = [answer[name] for answer in answers]
    return saw, folders


@pytest.fixture(params=DONE, ids=lambda case: f"{case[0]}-{case[1].replace(' ', '_')}")
def run(request, found):
    """(ranks, settings, what each rank saw)."""
    return request.param[0], RUNS[request.param[1]], found[0][request.param]


def accumulated(settings):
    return settings.get("accumulate_grad_batches", 1)


def test_ranks_end_with_the_same_weights(run):
    world_size, _, ranks = run
    assert len(ranks) == world_size and len(ranks[0]["weights"]) > 100
    assert all(rank["weights"] == ranks[0]["weights"] for rank in ranks)


def test_each_epoch_serves_every_rank_as_many_batches_of_its_own_images(run):
    world_size, settings, ranks = run
    batches = IMAGES // world_size // BATCH  # uneven ends are dropped
    for epoch in range(settings.get("max_epochs", 2)):
        served = []
        for rank in ranks:
            own = [batch["images"] for batch in rank["batches"] if batch["epoch"] == epoch]
            assert [len(batch) for batch in own] == [BATCH] * batches
            served += [image for batch in own for image in batch]
        assert len(set(served)) == len(served) == world_size * batches * BATCH


def test_ranks_share_the_partition_of_a_step(run):
    """One partition an optimizer step, the same on every rank, another at the next."""
    _, _, ranks = run
    steps = [batch["step"] for batch in ranks[0]["batches"]]
    partitions = [loss["partition"] for loss in ranks[0]["losses"]]
    assert all([loss["partition"] for loss in rank["losses"]] == partitions for rank in ranks)
    assert len(partitions) == len(steps)
    assert len(set(zip(steps, partitions))) == len(set(steps)) == len(set(partitions))


def test_what_is_printed_is_what_the_optimizer_does(run):
    world_size, settings, ranks = run
    said = ranks[0]["said"]
    batches = IMAGES // world_size // BATCH
    steps = math.ceil(batches / accumulated(settings))
    epochs = settings.get("max_epochs", 2)
    assert f"{steps} an epoch, {steps * epochs} in {epochs} epochs" in said
    assert f"global batch   {BATCH * world_size * accumulated(settings)} images" in said
    first, last = map(float, re.search(r"learning rate +(\S+) to (\S+) ", said).groups())
    for rank in ranks:
        assert rank["steps"] == steps * epochs
        assert rank["batches"][0]["lr"] == pytest.approx(first, rel=1e-3)
        assert rank["last lr"] == pytest.approx(last, rel=1e-3)
    plan = ranks[0]["summary"]["plan"]
    assert plan["machine"] == {"accelerator": "cpu", "devices": [*range(world_size)], "nodes": 1}
    assert (plan["steps_per_epoch"], plan["total_steps"]) == (steps, steps * epochs)
    assert plan["global_batch"] == BATCH * world_size * accumulated(settings)
    assert plan["lr"] == pytest.approx(ranks[0]["batches"][0]["lr"])
    assert plan["min_lr"] == pytest.approx(ranks[0]["last lr"])
    # lr x global batch / 256, accumulated batches included; min_lr x accumulated batches
    assert first == pytest.approx(0.3 * BATCH * world_size * accumulated(settings) / 256, rel=1e-3)
    assert last == pytest.approx(0.001 * accumulated(settings), rel=1e-3)


def test_an_optimizer_step_takes_the_mean_over_the_accumulated_batches(run):
    _, settings, ranks = run
    for rank in ranks:
        for index, batch in enumerate(rank["batches"]):
            assert batch["backward"] == pytest.approx(batch["loss"] / accumulated(settings))
            in_epoch = index % (len(rank["batches"]) // settings.get("max_epochs", 2))
            new = in_epoch % accumulated(settings) == 0
            before = rank["batches"][index - 1]["step"] if index else -1
            assert batch["step"] == before + new


def test_the_teacher_moves_once_an_optimizer_step_on_its_schedule(run):
    _, _, ranks = run
    total = ranks[0]["steps"]
    schedule = [1 - 0.1 * (math.cos(math.pi * step / total) + 1) / 2 for step in range(total)]
    for rank in ranks:
        assert [step for step, _ in rank["taus"]] == list(range(1, total + 1))
        assert [tau for _, tau in rank["taus"]] == pytest.approx(schedule)


def test_the_loss_sends_as_many_numbers_as_there_are_prototypes(run):
    """And nothing else of a training step sends more than a number: means of what is logged."""
    world_size, _, ranks = run
    for rank in ranks:
        for loss, batch in zip(rank["losses"], rank["batches"]):
            several = world_size > 1
            assert [call[:2] for call in loss["sent"]] == [("allreduce_", K)] * several
            assert sum(call.elements > 1 for call in batch["sent"]) == several


def test_only_the_first_rank_speaks_and_writes(found):
    saw, folders = found
    for (world_size, name), ranks in saw.items():
        assert ranks[0]["said"].count("global batch") == 1
        assert not any(rank["said"].strip() or rank["summary"] for rank in ranks[1:])
        summary = ranks[0]["summary"]
        path = folders[world_size] / summary["checkpoint"]
        assert path in path.parent.glob("*.ckpt")
        assert summary["name"] == name and (path.parent / "summary.json").is_file()
    for world_size, folder in folders.items():
        assert len(list(folder.rglob("summary.json"))) == len(
            [d for d in DONE if d[0] == world_size]
        )


def test_the_evaluation_runs_once_on_all_images(found):
    rows = found[0][2, "whole"][0]["summary"]["accuracy"]
    names = ["random, before training", "student", "teacher"]
    assert [row["features"] for row in rows] == names
    for row in rows:  # of 30 validation images, not of a rank's share
        assert row["knn"] * 30 / 100 == pytest.approx(round(row["knn"] * 30 / 100), abs=1e-4)


# ------------------------------------------------- weights against one process, without batch norm


class Piece(nn.Module):
    """A head without batch norm, and prototypes: what CARP trains besides the backbone."""

    def __init__(self):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 8))
        self.prototypes = Prototypes(K, 8)

    def forward(self, views):
        return [self.projector(view) for view in views], self.prototypes()


def weights_after_training(rank, world_size, fused):
    """Of three steps of SGD with momentum on this rank's share of the same global batches."""
    torch.manual_seed(0)
    student, teacher = Piece(), Piece()
    generator = torch.Generator().manual_seed(1)
    module = student if world_size == 1 else DistributedDataParallel(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, momentum=0.9)
    for step in range(3):
        views = torch.randn(2, 8, 12, generator=generator)
        views *= torch.arange(1, 9)[None, :, None] / 4  # ranks differ in scale
        views = views.chunk(world_size, dim=1)[rank]
        with torch.no_grad():
            targets, others = teacher(views)
        embeddings, prototypes = module(views)
        loss, _ = carp_objective_func(
            embeddings, targets, prototypes, others, random_partition(0, step, K), 8, fused=fused
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in student.parameters()]


def both_paths(rank, world_size):
    return {fused: weights_after_training(rank, world_size, fused) for fused in (True, False)}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_train_the_weights_of_one_process(world_size, tmp_path):
    answers = run_on_ranks(both_paths, world_size, tmp_path, world_size)
    for fused in (True, False):
        expected = weights_after_training(0, 1, fused)
        torch.manual_seed(0)
        begun = list(Piece().parameters())
        for i, parameter in enumerate(expected):
            assert (parameter - begun[i]).norm() > 0.01 * begun[i].norm()  # it has been trained
            for answer in answers:
                deviation = (answer[fused][i] - parameter).norm() / parameter.norm()
                assert deviation < 1e-6, (fused, i, deviation)
