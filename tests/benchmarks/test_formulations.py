"""The forms of the loss that are measured against each other do the same work, and measuring tells the truth."""

import os
import signal
import time

import pytest
import torch

from benchmarks import formulations
from benchmarks.formulations import (
    FORMS,
    Case,
    bare,
    chunked,
    extra_bytes,
    fused,
    inputs_of,
    materialised,
    seconds,
    seconds_by_target,
)
from benchmarks.measuring import PeakMemory, in_turns, medians
from benchmarks.processes import Died, in_own_process

CPU = torch.device("cpu")
CASES = [Case(5, 48, 6, 7), Case(1, 16, 16, 4), Case(8, 32, 1, 3), Case(16, 1024, 64, 32)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_materialised_and_fused_have_one_value_and_one_gradient(case):
    inputs = inputs_of(case, CPU)
    loss, gradients = fused(inputs, case.block)
    expected_loss, expected = materialised(inputs, case.block)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert len(gradients) == len(expected) == 3
    for found, wanted in zip(gradients, expected):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    assert case.gradient_bytes == sum(4 * gradient.numel() for gradient in gradients)


@pytest.mark.parametrize("chunk_bytes", [1, 200, 2**20])
def test_the_chunked_products_are_the_bare_ones(chunk_bytes, monkeypatch):
    monkeypatch.setattr(formulations, "_CHUNK_BYTES", chunk_bytes)
    inputs = inputs_of(Case(5, 48, 6, 7), CPU)
    z, C = torch.cat(inputs.student).detach(), inputs.C_KD.detach()
    expected = z @ C.T @ C, C @ z.T @ z
    for form in (bare, chunked):
        torch.testing.assert_close(form(inputs, 6), expected, rtol=1e-4, atol=1e-5)


def test_inputs_are_those_of_the_case_and_the_same_for_a_seed():
    case = Case(3, 12, 4, 5)
    one, two = inputs_of(case, CPU), inputs_of(case, CPU)
    assert [view.shape for view in (*one.student, *one.teacher)] == [(3, 5)] * 4
    assert one.C_KD.shape == one.teacher_C_KD.shape == (12, 5)
    assert sorted(one.permutation.tolist()) == list(range(12))
    torch.testing.assert_close(one.C_KD.norm(dim=1), torch.ones(12))
    assert torch.equal(one.C_KD, two.C_KD) and torch.equal(one.permutation, two.permutation)


def test_every_form_takes_every_turn():
    case = Case(4, 32, 8, 6)
    assert {form: len(taken) for form, taken in seconds(case, FORMS, "cpu", 0.0).items()} == (
        dict.fromkeys(FORMS, 2)
    )
    many = seconds(case, ["fused", "bare"], "cpu", 60.0)
    assert {form: len(taken) for form, taken in many.items()} == {"fused": 15, "bare": 15}
    assert all(value > 0 for taken in many.values() for value in taken)


def test_turns_alternate():
    order = []
    in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b"] * 3
    assert medians({"a": [3.0, 1.0, 2.0], "none": []}) == {"a": 2.0}


def test_a_target_of_the_chunks_is_measured_and_put_back(monkeypatch):
    before = formulations.carp.CHUNK_BYTES_CPU
    found = seconds_by_target(Case(4, 32, 8, 6), [1, 4096], "cpu", 1)
    assert set(found) == {"chunked", "1", "4096"} and all(value > 0 for value in found.values())
    assert before == formulations.carp.CHUNK_BYTES_CPU


# ----------------------------------------------------------------------------- memory and processes


def peak_of(mebibytes):
    """Run in its own process: the peak of an allocation that is gone when the block ends."""
    torch.ones(8)  # pages of code count too when they are first read
    with PeakMemory(CPU) as peak:
        held = torch.ones(mebibytes * 2**18)
        del held
    return peak.bytes


def fails():
    raise ValueError("on purpose")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def own_id():
    return os.getpid()


def test_peak_memory_is_what_was_held():
    assert in_own_process(peak_of, 64) == pytest.approx(64 * 2**20, abs=2**21)


def test_the_fused_loss_holds_less_than_the_materialised():
    case = Case(32, 16384, 64, 16)
    ours, theirs = (
        in_own_process(extra_bytes, case, form, "cpu") for form in ("fused", "materialised")
    )
    # Logits of 4 N rows are 8 MiB; the materialised form holds several of them.
    assert theirs > 3 * 8 * 2**20
    assert ours < theirs


def test_each_call_has_a_process_of_its_own():
    ids = {in_own_process(own_id) for _ in range(3)}
    assert len(ids) == 3 and os.getpid() not in ids


def test_a_process_that_dies_is_told_from_a_result():
    with pytest.raises(Died, match="ValueError: on purpose"):
        in_own_process(fails)
    with pytest.raises(Died, match="ended by signal 9"):
        in_own_process(killed)
    started = time.perf_counter()
    in_own_process(own_id)
    assert time.perf_counter() - started < 30  # the server has outlived both
