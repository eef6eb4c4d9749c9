"""The loss against golden values, a reference written apart from it, and the limits known by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from carp_plugin.losses import CARPLossTerms, carp_loss_func, carp_objective_func
from carp_plugin.losses import carp as module

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
PATHS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
CALLS = pytest.mark.parametrize("call", ["objective", "terms"])


def problem(views=2, images=4, dim=6, prototypes=24, seed=0, dtype=torch.float64, scale=2.0):
    """(student, teacher, student prototypes, teacher prototypes, permutation), all random."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    student = [(scale * normal(images, dim)).to(dtype) for _ in range(views)]
    teacher = [(scale * normal(images, dim)).to(dtype) for _ in range(2)]
    C, C_teacher = normal(prototypes, dim).to(dtype), normal(prototypes, dim).to(dtype)
    return student, teacher, C, C_teacher, torch.randperm(prototypes, generator=g)


def evaluate(args, size, call, fused, weights=(1.0, 1.0)):
    """(terms, gradients in the student views, gradient in the prototypes) of the weighted sum."""
    student, teacher, C, C_teacher, permutation = args
    student = [view.detach().clone().requires_grad_() for view in student]
    C = C.detach().clone().requires_grad_()
    args = (student, teacher, C, C_teacher, permutation, size)
    if call == "objective":
        loss, terms = carp_objective_func(
            *args, consistency_weight=weights[0], entropy_weight=weights[1], fused=fused
        )
    else:
        terms = carp_loss_func(*args, fused=fused)
        loss = weights[0] * terms.consistency + weights[1] * terms.entropy_gap
    loss.backward()
    return terms, [view.grad for view in student], C.grad


def reference(args, size):
    """(consistency, entropy gap, mean_probs) from the definitions, one number at a time in NumPy."""
    student, teacher, C, C_teacher, permutation = args
    order = permutation.numpy()
    gaps, agreements, means = [], [], []
    for first in range(0, len(order), size):
        block = order[first : first + size]

        def softmax_rows(view, prototypes, block=block):
            rows = []
            for h in view.numpy():
                e = np.array([math.exp(float(h @ prototypes[k].numpy())) for k in block])
                rows.append(e / e.sum())
            return rows

        s = [softmax_rows(view, C) for view in student]
        t = [softmax_rows(view, C_teacher) for view in teacher]
        for i in range(len(s)):
            for j in range(2):
                if i != j:
                    agreements += [-math.log(a @ b) for a, b in zip(s[i], t[j])]
        mean = np.mean([row for view in s + t for row in view], axis=0)
        gaps.append(math.log(size) + sum(p * math.log(p) for p in mean if p > 0))
        means.append(mean)
    return np.mean(agreements), np.mean(gaps), np.stack(means)


# ------------------------------------------------------------------------------- known values


@PATHS
@CALLS
@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_values_and_gradients_of_the_released_loss(file, call, fused):
    """No exception is needed: none of the files reaches a clamp of the released loss."""
    data = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    names = ("student", "teacher", "student_prototypes", "teacher_prototypes", "permutation")
    args = [data[name] for name in names]
    args[:2] = list(args[0]), list(args[1])
    terms, grad_student, grad_C = evaluate(args, int(data["partition_size"]), call, fused)

    def close(actual, expected):
        largest = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11 * largest)

    close(terms.consistency.detach(), data["consistency_mean_over_pairs"])
    close(terms.entropy_gap.detach(), data["entropy_gap"])
    close(torch.stack(grad_student), data["grad_student"])
    close(grad_C, data["grad_student_prototypes"])


def test_golden_files_are_there():
    assert len(GOLDEN) == 6


@PATHS
@pytest.mark.parametrize("views", [2, 3, 5])
def test_naive_reference(views, fused):
    args = problem(views=views)
    consistency, gap, mean = reference(args, 8)
    terms = carp_loss_func(*args, 8, fused=fused)
    assert terms.consistency.item() == pytest.approx(consistency, rel=1e-12)
    assert terms.entropy_gap.item() == pytest.approx(gap, rel=1e-12)
    np.testing.assert_allclose(terms.mean_probs.numpy(), mean, rtol=1e-12)


@PATHS
@CALLS
@pytest.mark.parametrize("views", [2, 4])
def test_blocks_of_one_have_nothing_to_learn(views, call, fused):
    terms, grad_student, grad_C = evaluate(problem(views=views), 1, call, fused)
    assert terms.consistency == 0
    assert terms.entropy_gap == 0
    assert torch.equal(terms.mean_probs, torch.ones(24, 1, dtype=torch.float64))
    for gradient in (*grad_student, grad_C):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@PATHS
def test_uniform_assignments_agree_by_chance_and_have_no_gap(fused):
    student, teacher, *rest = problem()
    zeros = [torch.zeros_like(view) for view in student]
    terms = carp_loss_func(zeros, zeros[:2], *rest, 8, fused=fused)
    assert terms.consistency.item() == pytest.approx(math.log(8), rel=1e-14)
    assert terms.entropy_gap.item() == pytest.approx(0.0, abs=1e-14)


@PATHS
def test_collapse_onto_one_prototype_has_the_largest_gap_and_no_inconsistency(fused):
    """A constant one-hot output; mean_probs is 0 elsewhere, where p log p is 0 and its slope infinite."""
    z = [torch.full((4, 1), 1e4) for _ in range(2)]
    C = torch.zeros(8, 1)
    C[::4] = 1.0
    args = (z, z, C, C, torch.arange(8))
    for call in ("objective", "terms"):
        terms, grad_student, grad_C = evaluate(args, 4, call, fused)
        assert (terms.mean_probs == 0).sum() == 6
        assert terms.consistency.item() == pytest.approx(0.0, abs=1e-6)
        assert terms.entropy_gap.item() == pytest.approx(math.log(4), rel=1e-6)
        for gradient in (*grad_student, grad_C):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@PATHS
def test_a_single_block_is_a_softmax_over_all_prototypes(fused):
    student, teacher, C, C_teacher, permutation = args = problem()
    terms = carp_loss_func(*args, 24, fused=fused)
    s = [(z @ C.T).softmax(1) for z in student]
    t = [(w @ C_teacher.T).softmax(1) for w in teacher]
    pairs = [-(s[0] * t[1]).sum(1).log(), -(s[1] * t[0]).sum(1).log()]
    assert terms.consistency.item() == pytest.approx(torch.cat(pairs).mean().item(), rel=1e-13)
    mean = torch.cat(s + t).mean(0)
    torch.testing.assert_close(terms.mean_probs, mean[permutation][None], rtol=1e-13, atol=0)


@PATHS
@CALLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_that_do_not_overlap_at_all(dtype, call, fused):
    """softmax a and softmax b have disjoint supports in any floating point type: <s, t> is exp(-2000)."""
    hot, cold = (
        torch.tensor([[2000.0, 0.0]], dtype=dtype),
        torch.tensor([[0.0, 2000.0]], dtype=dtype),
    )
    C = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    args = ([hot, hot], [cold, cold], C, C, torch.arange(2))
    terms, grad_student, grad_C = evaluate(args, 2, call, fused, weights=(1.0, 0.0))
    assert terms.consistency.item() == pytest.approx(2000.0 - math.log(2), rel=1e-6)
    # softmax a - softmax(a + b) = (1, 0) - (1/2, 1/2), over 2 pairs
    expected = torch.tensor([[0.25, -0.25]], dtype=dtype)
    # float32 knows the plain path's log s near -2000 to 1e-4
    torch.testing.assert_close(grad_student, [expected, expected], rtol=2e-4, atol=0)
    torch.testing.assert_close(grad_C, 2 * expected.T @ hot, rtol=2e-4, atol=0)


@pytest.mark.parametrize("distance", [50, 60, 65, 70, 80, 88, 95, 101, 103, 120])
def test_overlap_that_fades_into_the_smallest_numbers_of_its_type(distance):
    """exp(-distance) leaves the normal float32 at 87.3 and the denormal at 103.3, losing digits on the way."""
    eye = torch.eye(2)
    hot, cold = distance * eye[:1], distance * eye[1:]
    terms = carp_loss_func([hot, hot], [cold, cold], eye, eye, torch.arange(2), 2)
    assert terms.consistency.item() == pytest.approx(distance - math.log(2), rel=2e-7)


def test_part_of_the_rows_not_overlapping_leaves_the_others_as_they_were():
    """The product of probabilities serves until one row underflows; then the whole pair changes form."""
    args = problem(dtype=torch.float32)
    before = carp_loss_func(*args, 8)
    student, teacher, C, C_teacher, permutation = args
    # image 0 of view 0 is driven to one corner, that of the teacher's view 1 to the other
    student[0][0], teacher[1][0] = 200 * C[permutation[0]], 200 * C_teacher[permutation[1]]
    exact = carp_loss_func(*(_double(a) for a in args), 8, fused=False)
    after = carp_loss_func(*args, 8)
    assert before.consistency < 20 < after.consistency
    assert after.consistency.item() == pytest.approx(exact.consistency.item(), rel=1e-5)
    _, grad_student, grad_C = evaluate(args, 8, "objective", True)
    _, exact_student, exact_C = evaluate([_double(a) for a in args], 8, "objective", False)
    torch.testing.assert_close(torch.stack(grad_student).double(), torch.stack(exact_student))
    torch.testing.assert_close(grad_C.double(), exact_C, rtol=1e-4, atol=1e-5)


def _double(value):
    if isinstance(value, list):
        return [_double(view) for view in value]
    return value.double() if value.is_floating_point() else value


# ----------------------------------------------------------------------------------- gradients


@PATHS
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("quantity", ["consistency", "entropy_gap", "objective"])
def test_gradcheck(quantity, views, fused):
    student, teacher, C, C_teacher, permutation = problem(views=views, images=3, prototypes=12)

    def value(C, *student):
        args = (student, teacher, C, C_teacher, permutation, 4)
        if quantity == "objective":
            return carp_objective_func(
                *args, consistency_weight=0.7, entropy_weight=1.9, fused=fused
            )[0]
        return getattr(carp_loss_func(*args, fused=fused), quantity)

    inputs = [tensor.requires_grad_() for tensor in (C, *student)]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, -0.5)])
def test_weights_enter_all_forms_alike(weights):
    expected = None
    for call in ("objective", "terms"):
        for fused in (True, False):
            _, grad_student, grad_C = evaluate(problem(views=3), 6, call, fused, weights)
            actual = [*grad_student, grad_C]
            expected = expected or actual
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)


@PATHS
def test_the_objective_is_the_weighted_sum_of_terms_that_are_detached(fused):
    student, *rest = problem()
    student[0].requires_grad_()
    loss, terms = carp_objective_func(
        student, *rest, 8, consistency_weight=2.0, entropy_weight=0.5, fused=fused
    )
    assert isinstance(terms, CARPLossTerms)
    assert loss.item() == pytest.approx(2 * terms[0].item() + 0.5 * terms[1].item(), rel=1e-14)
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms)


@PATHS
def test_mean_probs_are_detached(fused):
    student, *rest = problem()
    student[0].requires_grad_()
    terms = carp_loss_func(student, *rest, 8, fused=fused)
    assert terms.consistency.requires_grad
    assert terms.entropy_gap.requires_grad
    assert not terms.mean_probs.requires_grad


@PATHS
@CALLS
def test_nothing_reaches_the_teacher(call, fused):
    student, teacher, C, C_teacher, permutation = problem()
    for tensor in (*student, *teacher, C, C_teacher):
        tensor.requires_grad_()
    args = (student, teacher, C, C_teacher, permutation, 8)
    if call == "objective":
        loss, _ = carp_objective_func(*args, fused=fused)
    else:
        terms = carp_loss_func(*args, fused=fused)
        loss = terms.consistency + terms.entropy_gap
    loss.backward()
    assert all(tensor.grad is None for tensor in (*teacher, C_teacher))
    assert all(tensor.grad is not None for tensor in (*student, C))


@PATHS
@CALLS
def test_shared_prototypes_receive_the_student_gradient_only(call, fused):
    student, teacher, C, _, permutation = problem()
    _, expected_student, expected_C = evaluate(
        (student, teacher, C, C.clone(), permutation), 8, call, fused
    )
    C.requires_grad_()
    args = (student, teacher, C, C, permutation, 8)
    if call == "objective":
        loss, _ = carp_objective_func(*args, fused=fused)
    else:
        terms = carp_loss_func(*args, fused=fused)
        loss = terms.consistency + terms.entropy_gap
    loss.backward()
    torch.testing.assert_close(C.grad, expected_C, rtol=1e-14, atol=0)


@PATHS
@CALLS
@pytest.mark.parametrize("wanted", ["view 1", "prototypes"])
def test_only_what_requires_a_gradient_receives_one(wanted, call, fused, monkeypatch):
    args = problem()
    _, expected_student, expected_C = evaluate(args, 8, call, fused)
    student, teacher, C, C_teacher, permutation = args
    leaf = (student[1] if wanted == "view 1" else C).requires_grad_()
    found = []
    original = module._fused_pass

    def spy(*args, **kwargs):
        found.append(original(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(module, "_fused_pass", spy)
    arguments = (student, teacher, C, C_teacher, permutation, 8)
    if call == "objective":
        loss, _ = carp_objective_func(*arguments, fused=fused)
    else:
        terms = carp_loss_func(*arguments, fused=fused)
        loss = terms.consistency + terms.entropy_gap
    loss.backward()
    expected = expected_student[1] if wanted == "view 1" else expected_C
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-13, atol=1e-16)
    if fused:
        last = found[-1]
        assert (last.grad_z_RD is None) == (wanted == "prototypes")
        assert (last.grad_C_KD is None) == (wanted == "view 1")


def test_without_gradients_none_is_computed(monkeypatch):
    student, *rest = problem()
    student[0].requires_grad_()
    passes = []
    original = module._fused_pass

    def spy(*args, **kwargs):
        passes.append(original(*args, **kwargs))
        return passes[-1]

    monkeypatch.setattr(module, "_fused_pass", spy)
    with torch.no_grad():
        loss, _ = carp_objective_func(student, *rest, 8)
        terms = carp_loss_func(student, *rest, 8)
    assert not loss.requires_grad
    assert not terms.consistency.requires_grad
    carp_loss_func(student, *rest, 8)  # with gradients, but not before backward
    assert all(p.grad_z_RD is None and p.grad_C_KD is None for p in passes)
    assert len(passes) == 3
    with torch.inference_mode():
        carp_objective_func(student, *rest, 8)


class Watch(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, and the matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "dot"):
            left, right = [tensor for tensor in args if tensor.ndim > 1][-2:]
            self.products.append((left.shape[0], left.shape[1], right.shape[1]))
        return out


def test_the_objective_takes_four_matrix_products():
    """The logits of student and teacher and the two gradients, each (rows, inner, columns)."""
    student, *rest = problem(views=3, images=4, dim=6, prototypes=24)
    student[0].requires_grad_()
    rest[1].requires_grad_()
    with Watch() as watch:
        carp_objective_func(student, *rest, 8)[0].backward()
    assert watch.products == [(12, 6, 24), (8, 6, 24), (12, 24, 6), (24, 12, 6)]


@PATHS
@CALLS
def test_backward_twice_through_a_kept_graph_gives_the_same(call, fused):
    student, *rest = problem()
    student[0].requires_grad_()
    if call == "objective":
        loss, _ = carp_objective_func(student, *rest, 8, fused=fused)
    else:
        loss = sum(carp_loss_func(student, *rest, 8, fused=fused)[:2])
    (first,) = torch.autograd.grad(loss, student[0], retain_graph=True)
    (tripled,) = torch.autograd.grad(3 * loss, student[0], retain_graph=True)
    (second,) = torch.autograd.grad(loss, student[0])
    assert torch.equal(first, second)
    torch.testing.assert_close(tripled, 3 * first, rtol=1e-12, atol=1e-15)


def test_accumulating_into_a_leaf_over_a_kept_graph_adds():
    """backward() may hand out the gradient it has kept: what is added to it later must not change it."""
    student, *rest = problem()
    rest[1].requires_grad_()
    loss, _ = carp_objective_func(student, *rest, 8)
    loss.backward(retain_graph=True)
    once = rest[1].grad.clone()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(rest[1].grad, 3 * once, rtol=1e-14, atol=0)


@CALLS
@pytest.mark.parametrize("leaf", ["student", "prototypes"])
def test_a_second_derivative_is_refused_by_the_fused_path(leaf, call):
    """Also where the rest of the graph could be differentiated: a penalty is not dropped in silence."""
    student, *rest = problem()
    x = (student[0] if leaf == "student" else rest[1]).requires_grad_()
    if call == "objective":
        loss, _ = carp_objective_func(student, *rest, 8)
    else:
        loss = sum(carp_loss_func(student, *rest, 8)[:2])
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; fused=False has"):
        (x.sum() + gradient.square().sum()).backward()


def test_the_plain_path_has_a_second_derivative():
    student, *rest = problem(images=2, dim=3, prototypes=6)

    def value(view):
        return carp_objective_func([view, student[1]], *rest, 3, fused=False)[0]

    assert torch.autograd.gradgradcheck(value, [student[0].requires_grad_()])


@PATHS
def test_inputs_and_random_state_are_left_alone(fused):
    args = problem()
    copies = [[v.clone() for v in a] if isinstance(a, list) else a.clone() for a in args]
    state = torch.get_rng_state()
    evaluate(args, 8, "objective", fused)
    carp_loss_func(*args, 8, fused=fused)
    torch.testing.assert_close(list(args), copies, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------- properties

SHAPES = {
    "views": st.integers(2, 4),
    "images": st.integers(1, 5),
    "size": st.integers(1, 6),
    "blocks": st.integers(1, 6),
    "per_chunk": st.integers(1, 6),
    "scale": st.sampled_from([0.1, 1.0, 10.0, 100.0, 1000.0]),
    "seed": st.integers(0, 2**20),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_fused_equals_plain_for_any_shape_and_chunk(
    views, images, size, blocks, per_chunk, scale, seed
):
    args = problem(views, images, 5, size * blocks, seed, scale=scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_blocks_per_chunk", lambda layout, z_RD: per_chunk)
        fused = [evaluate(args, size, call, True) for call in ("objective", "terms")]
    expected = evaluate(args, size, "terms", False)
    largest = max(gradient.abs().max().item() for gradient in (*expected[1], expected[2]))
    for terms, grad_student, grad_C in fused:
        for actual, value in zip(terms, expected[0]):
            torch.testing.assert_close(actual, value.detach(), rtol=1e-11, atol=1e-13)
        tolerance = {"rtol": 1e-10, "atol": 1e-12 * max(largest, scale)}
        torch.testing.assert_close(grad_student, expected[1], **tolerance)
        torch.testing.assert_close(grad_C, expected[2], **tolerance)


@PATHS
@settings(max_examples=25, deadline=None)
@given(**SHAPES)
def test_bounds(fused, views, images, size, blocks, per_chunk, scale, seed):
    args = problem(views, images, 5, size * blocks, seed, scale=scale)
    terms = carp_loss_func(*args, size, fused=fused)
    assert terms.consistency >= -1e-12
    assert -1e-12 <= terms.entropy_gap <= math.log(size) + 1e-12
    assert terms.mean_probs.shape == (blocks, size)
    torch.testing.assert_close(
        terms.mean_probs.sum(1), torch.ones(blocks, dtype=torch.float64), rtol=1e-12, atol=0
    )


@PATHS
@settings(max_examples=20, deadline=None)
@given(**SHAPES)
def test_order_of_images_and_order_within_a_block_do_not_matter(
    fused, views, images, size, blocks, per_chunk, scale, seed
):
    student, teacher, C, C_teacher, permutation = problem(
        views, images, 5, size * blocks, seed, scale=scale
    )
    expected = carp_loss_func(student, teacher, C, C_teacher, permutation, size, fused=fused)
    g = torch.Generator().manual_seed(seed + 1)
    order = torch.randperm(images, generator=g)
    shuffled = [[view[order] for view in views_] for views_ in (student, teacher)]
    within = torch.stack(
        [block[torch.randperm(size, generator=g)] for block in permutation.view(-1, size)]
    )
    within = within[torch.randperm(blocks, generator=g)]  # and the order of the blocks
    actual = carp_loss_func(*shuffled, C, C_teacher, within.flatten(), size, fused=fused)
    torch.testing.assert_close(actual[:2], expected[:2], rtol=1e-11, atol=1e-13)


@PATHS
def test_a_constant_added_to_every_logit_changes_nothing(fused):
    """Prototypes that all move along one direction move every logit of a row alike."""
    student, teacher, C, C_teacher, permutation = problem()
    expected = carp_loss_func(student, teacher, C, C_teacher, permutation, 8, fused=fused)
    shift = torch.randn(1, 6, dtype=torch.float64)
    moved = carp_loss_func(
        student, teacher, C + shift, C_teacher - shift, permutation, 8, fused=fused
    )
    torch.testing.assert_close(moved, expected, rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------------------------- data types


@PATHS
@CALLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precisions_agree_with_double(dtype, call, fused):
    args = problem(views=3, images=6, prototypes=32, dtype=dtype)
    terms, grad_student, grad_C = evaluate(args, 8, call, fused)
    exact, exact_student, exact_C = evaluate([_double(a) for a in args], 8, call, fused)
    assert all(term.dtype == torch.float32 for term in terms)
    assert all(gradient.dtype == dtype for gradient in (*grad_student, grad_C))
    for actual, expected in zip(terms[:2], exact[:2]):
        assert actual.item() == pytest.approx(expected.item(), rel=2e-6)
    epsilon = 4 * torch.finfo(dtype).eps + 1e-6
    for actual, expected in zip((*grad_student, grad_C), (*exact_student, exact_C)):
        torch.testing.assert_close(
            actual.double(), expected, rtol=epsilon, atol=epsilon * expected.abs().max().item()
        )


@PATHS
@CALLS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_huge_embeddings_stay_finite(dtype, call, fused):
    student, teacher, C, C_teacher, permutation = problem(dim=64, prototypes=64, dtype=dtype)
    student = [1e4 * view.sign() for view in student]
    teacher = [1e4 * view.sign() for view in teacher]
    args = (student, teacher, C, C_teacher, permutation)
    terms, grad_student, grad_C = evaluate(args, 16, call, fused)
    for tensor in (*terms, *grad_student, grad_C):
        assert tensor.isfinite().all()
    assert terms.consistency > 1e4


@PATHS
def test_mixed_types_compute_in_the_widest(fused):
    """As under autocast: embeddings in half precision, prototypes in single."""
    student, teacher, C, C_teacher, permutation = problem(dtype=torch.float32)
    student = [view.half() for view in student]
    teacher = [view.bfloat16() for view in teacher]
    args = (student, teacher, C, C_teacher, permutation)
    terms, grad_student, grad_C = evaluate(args, 8, "objective", fused)
    exact, _, _ = evaluate([_double(a) for a in args], 8, "objective", fused)
    assert terms.consistency.item() == pytest.approx(exact.consistency.item(), rel=1e-6)
    assert {gradient.dtype for gradient in grad_student} == {torch.float16}
    assert grad_C.dtype == torch.float32


@PATHS
@CALLS
def test_autocast_changes_nothing(call, fused):
    args = problem(dtype=torch.float32)
    expected = evaluate(args, 8, call, fused)
    student = [view.clone().requires_grad_() for view in args[0]]
    C = args[2].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if call == "objective":
            loss, terms = carp_objective_func(student, args[1], C, *args[3:], 8, fused=fused)
        else:
            terms = carp_loss_func(student, args[1], C, *args[3:], 8, fused=fused)
            loss = terms.consistency + terms.entropy_gap
    loss.backward()
    assert torch.equal(terms.consistency, expected[0].consistency)
    assert torch.equal(C.grad, expected[2])
    assert all(torch.equal(view.grad, g) for view, g in zip(student, expected[1]))


@PATHS
@CALLS
def test_a_loss_scale_reaches_gradients_before_they_are_rounded_to_half(call, fused):
    """Small gradients are zero in float16; with GradScaler's 2**16 they are not."""
    student, teacher, C, C_teacher, permutation = problem(
        images=8, prototypes=512, dtype=torch.float16
    )
    args = (student, teacher, C, C_teacher, permutation)
    weights, scale = (1e-4, 1e-4), 2.0**16
    exact = evaluate([_double(a) for a in args], 8, call, fused, weights)[2]
    assert exact.abs().max() < 1e-4
    student = [view.clone().requires_grad_() for view in student]
    C = C.clone().requires_grad_()
    if call == "objective":
        loss, _ = carp_objective_func(
            student, teacher, C, C_teacher, permutation, 8,
            consistency_weight=1e-4, entropy_weight=1e-4, fused=fused,
        )  # fmt: skip
    else:
        loss = 1e-4 * sum(
            carp_loss_func(student, teacher, C, C_teacher, permutation, 8, fused=fused)[:2]
        )
    (scale * loss).backward()
    torch.testing.assert_close(C.grad.double() / scale, exact, rtol=2e-3, atol=1e-9)


@PATHS
@CALLS
def test_layout_in_memory_does_not_matter(call, fused):
    args = problem(views=3)
    expected = evaluate(args, 8, call, fused)

    def strided(tensor):
        return torch.stack([tensor, tensor], dim=-1)[..., 0]

    student, teacher, C, C_teacher, permutation = args
    student = [view.T.contiguous().T for view in student]
    args = (
        student,
        [strided(w) for w in teacher],
        strided(C),
        strided(C_teacher),
        strided(permutation),
    )
    assert not any(tensor.is_contiguous() for tensor in (*student, *args[1], *args[2:]))
    leaves = [view.requires_grad_() for view in student]
    C = args[2].requires_grad_()
    if call == "objective":
        loss, terms = carp_objective_func(leaves, args[1], C, *args[3:], 8, fused=fused)
    else:
        terms = carp_loss_func(leaves, args[1], C, *args[3:], 8, fused=fused)
        loss = terms.consistency + terms.entropy_gap
    loss.backward()
    torch.testing.assert_close(terms.consistency.detach(), expected[0].consistency.detach())
    torch.testing.assert_close([view.grad for view in leaves], expected[1])
    torch.testing.assert_close(C.grad, expected[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_form_for_accelerators_equals_the_form_for_cpus(dtype, monkeypatch):
    """On an accelerator no value may be looked at, so the sum of logits is always taken."""
    args = problem(views=3, dtype=dtype)
    expected = evaluate(args, 8, "objective", True)
    monkeypatch.setattr(module, "_may_look", lambda tensor: False)
    actual = evaluate(args, 8, "objective", True)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1:], expected[1:])


# -------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("call", ["objective", "terms"])
def test_no_tensor_of_all_images_and_prototypes_exists(call, monkeypatch):
    images, dim, prototypes, size = 32, 4, 512, 8
    monkeypatch.setattr(module, "_blocks_per_chunk", lambda layout, z_RD: 2)
    args = problem(images=images, dim=dim, prototypes=prototypes)
    with Watch() as watch:
        evaluate(args, size, call, True)
    # The gradient of the prototypes. The logits of both views would be 16 times that.
    assert watch.largest == prototypes * dim


# -------------------------------------------------------------------------------------- errors


def _with(**changes):
    names = ("student", "teacher", "student_prototypes", "teacher_prototypes", "permutation")
    return {**dict(zip(names, problem())), "partition_size": 8, **changes}


_f = torch.ones
BAD = {
    "one student view": ({"student": [_f(4, 6)]}, "student: expected at least 2 views, received 1"),
    "one teacher view": ({"teacher": [_f(4, 6)]}, "teacher: expected exactly 2 views, received 1"),
    "three teacher views": ({"teacher": [_f(4, 6)] * 3}, "exactly 2 views, received 3"),
    "views of different shape": (
        {"student": [_f(4, 6), _f(3, 6)]},
        r"student\[1\]: expected the shape of student\[0\], \(4, 6\), received \(3, 6\)",
    ),
    "teacher of another shape": (
        {"teacher": [_f(4, 6), _f(4, 7)]},
        r"teacher\[1\]: .*received \(4, 7\)",
    ),
    "a view of three axes": ({"student": [_f(4, 6, 1)] * 2}, r"\(N, D\).*received \(4, 6, 1\)"),
    "no images": ({"student": [_f(0, 6)] * 2}, r"N >= 1, received \(0, 6\)"),
    "integer embeddings": (
        {"student": [_f(4, 6).long()] * 2},
        r"student\[0\]: expected a real floating point type, received torch.int64",
    ),
    "complex prototypes": (
        {"student_prototypes": _f(24, 6).cfloat()},
        "student_prototypes: expected a real floating point type, received torch.complex64",
    ),
    "prototypes of another size": (
        {"student_prototypes": _f(24, 5)},
        r"student_prototypes: expected shape \(K, 6\), received \(24, 5\)",
    ),
    "prototypes of one axis": ({"teacher_prototypes": _f(24)}, r"received \(24,\)"),
    "another number of teacher prototypes": (
        {"teacher_prototypes": _f(23, 6)},
        "teacher_prototypes: expected 24 rows like student_prototypes, received 23",
    ),
    "prototypes elsewhere": (
        {"teacher_prototypes": _f(24, 6, device="meta")},
        "teacher_prototypes: expected on cpu like .*, received on meta",
    ),
    "K is no multiple of B": (
        {"partition_size": 7},
        "partition_size: expected a positive divisor of K = 24, received 7",
    ),
    "B of zero": ({"partition_size": 0}, "received 0"),
    "negative B": ({"partition_size": -8}, "received -8"),
    "B above K": ({"partition_size": 48}, "received 48"),
    "fractional B": ({"partition_size": 8.0}, "partition_size: expected an int, received 8.0"),
    "short permutation": (
        {"permutation": torch.arange(23)},
        r"permutation: expected shape \(24,\) and type torch.int64, received \(23,\) and torch.int64",
    ),
    "permutation of int32": (
        {"permutation": torch.arange(24).int()},
        r"received \(24,\) and torch.int32",
    ),
    "permutation elsewhere": (
        {"permutation": torch.arange(24, device="meta")},
        "permutation: expected on cpu like the prototypes, received on meta",
    ),
}  # fmt: skip


@PATHS
@pytest.mark.parametrize("function", [carp_loss_func, carp_objective_func])
@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_said(name, function, fused):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        function(**_with(**changes), fused=fused)


@PATHS
def test_tuples_and_a_stacked_tensor_serve_as_views(fused):
    student, teacher, *rest = problem()
    expected = carp_loss_func(student, teacher, *rest, 8, fused=fused)
    for pack in (tuple, torch.stack):
        actual = carp_loss_func(pack(student), pack(teacher), *rest, 8, fused=fused)
        assert torch.equal(actual.consistency, expected.consistency)
