import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carp_plugin import partition as partitions
from carp_plugin.partition import PARTITIONS, constant_partition, partition, random_partition

K = 256


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(-(2**63), 2**64), step=st.integers(0, 2**40), size=st.integers(1, 300))
def test_it_is_a_permutation_of_all_prototypes(seed, step, size):
    permutation = random_partition(seed, step, size)
    assert permutation.dtype == torch.int64
    assert permutation.sort().values.tolist() == list(range(size))


def test_same_seed_and_step_give_the_same_partition_whatever_came_before():
    first = random_partition(5, 1000, K)
    for step in range(20):
        random_partition(5, step, K)
    torch.randn(100)
    assert torch.equal(random_partition(5, 1000, K), first)
    assert torch.equal(random_partition(np.int64(5), np.int64(1000), K), first)


def test_another_process_draws_the_same_partition():
    code = (
        "from carp_plugin.partition import random_partition as p; print(*p(5, 1000, 64).tolist())"
    )
    root = str(Path(__file__).parents[1])
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert out.stdout.split() == [str(i) for i in random_partition(5, 1000, 64).tolist()]


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = random_partition(0, 0, K)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(random_partition(0, 0, K), first)


def test_neighbouring_seeds_and_steps_are_unrelated():
    """Two independent permutations agree in 1 place on average; more than 8 has probability 1e-6."""
    pairs = [(seed, step) for seed in range(12) for step in range(12)]
    drawn = [random_partition(seed, step, K) for seed, step in pairs]
    agreements = [int((a == b).sum()) for a, b in combinations(drawn, 2)]
    assert max(agreements) <= 10
    # 10,296 pairs: the mean of a Poisson(1) sample, standard error 0.01.
    assert np.mean(agreements) == pytest.approx(1.0, abs=0.05)


def test_every_prototype_is_equally_likely_in_every_block():
    size, block, draws = 8, 2, 4000
    meetings = Counter()
    places = torch.zeros(size, size)
    for step in range(draws):
        permutation = random_partition(3, step, size)
        places[torch.arange(size), permutation] += 1
        for pair in permutation.view(-1, block).tolist():
            meetings[tuple(sorted(pair))] += 1
    # chi-square, 49 and 27 degrees of freedom: above 94 and 63 with probability 1e-4
    expected = draws / size
    assert float(((places - expected) ** 2 / expected).sum()) < 94
    expected = draws * (size // block) / 28
    assert len(meetings) == 28
    assert sum((n - expected) ** 2 / expected for n in meetings.values()) < 63


def test_seeds_that_share_their_low_bits_differ():
    assert not torch.equal(random_partition(0, 1, K), random_partition(2**32, 1, K))
    assert not torch.equal(random_partition(0, 1, K), random_partition(0, 1 + 2**32, K))


def test_constant_partition_is_the_identity_at_every_step():
    assert constant_partition(5).tolist() == [0, 1, 2, 3, 4]
    assert constant_partition(5).dtype == torch.int64
    for step in (0, 7):
        assert torch.equal(partition("constant", 1, step, 5), constant_partition(5))


def test_a_partition_is_found_by_its_name():
    assert set(PARTITIONS) == {"random", "constant"}
    assert torch.equal(partition("random", 1, 2, K), random_partition(1, 2, K))


@pytest.mark.parametrize("kind", ["random", "constant"])
def test_the_device_asked_for_is_the_device_received(kind):
    assert partition(kind, 0, 0, 8, "cpu").device.type == "cpu"
    assert partition(kind, 0, 0, 8, torch.device("meta")).device.type == "meta"


def test_every_device_receives_the_permutation_of_the_cpu(device):
    received = random_partition(0, 3, K, device)
    assert received.device.type == device.type
    assert torch.equal(received.cpu(), random_partition(0, 3, K))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_partition(0, -1, 8), "step: expected an int >= 0, received -1"),
        (lambda: random_partition(0, 0, 0), "num_prototypes: expected an int >= 1, received 0"),
        (lambda: constant_partition(-3), "num_prototypes: expected an int >= 1, received -3"),
        (
            lambda: partition("sorted", 0, 0, 8),
            r"partition: expected one of \['constant', 'random'\], received 'sorted'",
        ),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_hash_is_splitmix64():
    """The published sequence of the seed 1234567: its n-th number is that of the seed n steps on."""
    step = 0x9E3779B97F4A7C15
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    published += (4593380528125082431, 16408922859458223821)
    for n, number in enumerate(published):
        assert partitions._splitmix64((1234567 + n * step) % 2**64) == number


@pytest.mark.parametrize("seed, step", [(0, 0), (5, 1000), (-1, 3), (2**64 + 7, 2**40)])
def test_the_partition_is_the_one_of_its_hash(seed, step):
    """randperm of the low 32 bits, relabelled by the high ones: what a run of an older version drew is drawn again."""
    first = partitions._splitmix64(seed % 2**64)
    mixed = partitions._splitmix64((first + step) % 2**64)
    drawn = torch.randperm(300, generator=torch.Generator().manual_seed(mixed % 2**32))
    expected = [(int(index) + mixed // 2**32) % 300 for index in drawn]
    assert random_partition(seed, step, 300).tolist() == expected
