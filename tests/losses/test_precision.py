"""Half precision: embeddings as large as +-1e4 give finite terms and gradients, those of float64 of the same inputs."""

import pytest
import torch

from carp_plugin.commands.pretrain import pretrain
from carp_plugin.losses import carp, carp_loss_func, carp_objective_func
from carp_plugin.methods.carp import CARP
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.data.built import training_loader
from tests.helpers import augmentation, image_folder, small_settings
from tests.methods.test_carp import FakeTrainer

FULL_WIDTH = True  # of ResNets, tests/conftest.py: narrow ones reach the end of half precision's range more often

K, B, D, N = 64, 16, 24, 6
HALVES = [torch.float16, torch.bfloat16]


def problem(dtype, largest, views=2, unit_prototypes=True, prototype_dtype=None):
    """Views and prototypes with values up to +-largest, exactly as they are in the lower precision."""
    generator = torch.Generator().manual_seed(0)

    def views_of(count):
        return [
            (largest * (2 * torch.rand(N, D, generator=generator) - 1)).to(dtype)
            for _ in range(count)
        ]

    C = torch.randn(K, D, generator=generator)
    C = torch.nn.functional.normalize(C, dim=1) if unit_prototypes else C
    C = C.to(prototype_dtype or dtype)
    return views_of(views), views_of(2), C, torch.randperm(K, generator=generator)


def run(dtype, student, teacher, C, permutation, fused, autocast=None, scale=1.0):
    """Terms and gradients, with inputs as leaves of their own type."""
    student = [view.to(dtype or view.dtype).clone().requires_grad_() for view in student]
    C = C.to(dtype or C.dtype).clone().requires_grad_()
    teacher = [view.to(dtype or view.dtype) for view in teacher]
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss, terms = carp_objective_func(student, teacher, C, C, permutation, B, fused=fused)
    (loss * scale).backward()
    return terms, [view.grad for view in student] + [C.grad]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("autocast", [None, *HALVES])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("largest", [1.0, 1e4])
def test_half_precision_is_that_of_double_precision_of_the_same_inputs(
    largest, dtype, autocast, fused
):
    inputs = problem(dtype, largest)
    terms, gradients = run(None, *inputs, fused, autocast)
    exact, exact_gradients = run(torch.float64, *inputs, fused=False)
    assert terms.consistency.dtype == terms.entropy_gap.dtype == torch.float32
    assert terms.consistency.item() == pytest.approx(exact.consistency.item(), rel=1e-4)
    assert terms.entropy_gap.item() == pytest.approx(exact.entropy_gap.item(), rel=1e-4, abs=1e-6)
    step = torch.finfo(dtype).eps
    for gradient, expected in zip(gradients, exact_gradients):
        assert gradient.dtype == dtype and gradient.isfinite().all()
        error = (gradient.double() - expected).norm() / expected.norm()
        assert error < 2 * step  # that of writing them down in half precision, and no more


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_all_alike_at_1e4(dtype, fused):
    """One-hot assignments, agreeing or contradicting: log 0 would be here, were it taken."""
    z = torch.full((N, D), 1e4).to(dtype)
    C = torch.randn(K, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    for teacher in (z, -z):
        terms, gradients = run(None, [z, z], [teacher, teacher], C, torch.arange(K), fused)
        assert all(term.isfinite() for term in terms[:2])
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("views", [2, 4])
def test_terms_apart_are_finite_too(views, fused):
    student, teacher, C, permutation = problem(torch.float16, 1e4, views)
    student = [view.requires_grad_() for view in student]
    terms = carp_loss_func(student, teacher, C, C, permutation, B, fused=fused)
    (terms.consistency + terms.entropy_gap).backward()
    assert all(view.grad.isfinite().all() for view in student)


@pytest.mark.parametrize("fused", [True, False])
def test_embeddings_in_half_and_prototypes_in_single_precision(fused):
    """What mixed precision makes: the head's output is half, the weights are not."""
    inputs = problem(torch.float16, 1e4, prototype_dtype=torch.float32)
    _, gradients = run(None, *inputs, fused, torch.float16)
    assert [g.dtype for g in gradients] == [torch.float16, torch.float16, torch.float32]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("fused", [True, False])
def test_a_loss_scale_reaches_small_gradients_before_they_become_half(fused):
    """65,536 as a scaler starts with: gradients below half's smallest number survive, and are the scaled ones."""
    student, teacher, C, permutation = problem(torch.float16, 1.0)
    C = C * 2**-5
    inputs = (student, teacher, C, permutation)
    _, plain = run(None, *inputs, fused)
    _, scaled = run(None, *inputs, fused, scale=2.0**16)
    _, exact = run(torch.float64, *inputs, fused=False)
    wanted = exact[0] * 2**16
    assert wanted.abs().max() < torch.finfo(torch.float16).max
    assert (scaled[0].double() - wanted).norm() / wanted.norm() < 1e-3
    assert (plain[0].double() - exact[0]).norm() / exact[0].norm() > 1e-3


# --------------------------------------------------------------------------------- whole steps


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("views", [[augmentation()], [augmentation(16, 2), augmentation(8, 2)]])
def test_training_in_bf16_mixed(views, images):
    summary = pretrain(
        small_settings(
            images,
            max_epochs=1,
            precision="bf16-mixed",
            augmentations=views,
            evaluation={"enabled": False},
        )
    )
    assert summary["steps"] == 3 and summary["last_epoch"]["train_carp_loss"] > 0
    state = torch.load(summary["checkpoint"], weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_step_under_autocast_is_finite_to_the_last_gradient(dtype, fused, images, monkeypatch):
    """Lightning has no 16-mixed on a CPU, so autocast and the loss scale are by hand; student and head in half."""
    settings = small_settings(images, method_kwargs__fused=fused)
    model = build_model(settings, machine_of(settings))
    monkeypatch.setattr(CARP, "trainer", FakeTrainer())
    for log in ("log", "log_dict"):
        monkeypatch.setattr(CARP, log, lambda self, *_, **__: None)
    with torch.no_grad():  # embeddings of about +-1e4
        model.projector[-1].weight.mul_(1e4)
        model.momentum_projector[-1].weight.mul_(1e4)
    with torch.autocast("cpu", dtype=dtype):
        loss = model.training_step(next(iter(training_loader(settings))), 0)
    assert model.step_embeddings.dtype == dtype and model.step_embeddings.abs().max() > 1e3
    assert all(value.isfinite() for value in model.step_metrics.values())
    (loss * 2.0).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_16_mixed_on_a_cpu_trains(images):
    """Lightning warns and takes bf16-mixed."""
    settings = small_settings(
        images, max_epochs=1, precision="16-mixed", evaluation={"enabled": False}
    )
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU"):
        assert pretrain(settings)["last_epoch"]["train_carp_loss"] > 0


def test_tf32_keeps_ten_bits_and_what_is_not_finite():
    values = [1.0, 1 + 2**-10, 1 + 2**-12, 1 + 2**-11, -(1 + 3 * 2**-11), 3e38, 0.0, -0.0]
    kept = [1.0, 1 + 2**-10, 1.0, 1 + 2**-10, -(1 + 2 * 2**-10), 3e38, 0.0, -0.0]
    rounded = carp._tf32(torch.tensor(values))
    assert rounded.tolist() == pytest.approx(kept, rel=2**-11)
    assert rounded[:5].tolist() == kept[:5]
    assert not (rounded.view(torch.int32) & 0x1FFF).any()
    odd = carp._tf32(torch.tensor([float("inf"), -float("inf"), float("nan")]))
    assert odd[:2].tolist() == [float("inf"), -float("inf")] and odd[2].isnan()


def all_of(device, products, dtype=torch.float32, views=2):
    """Loss and gradients (flat) of a problem of the paper's D, two blocks of its B."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    image = normal(48, 256)
    views = [(image + 0.5 * normal(48, 256)).requires_grad_() for _ in range(views)]
    C = torch.nn.functional.normalize(normal(1024, 256), dim=1).requires_grad_()
    order = torch.randperm(1024, generator=generator).to(device)
    loss, _ = carp_objective_func(views, views[:2], C, C, order, 512, products=products)
    gradients = torch.autograd.grad(loss, [*views, C])
    return loss.detach().double().cpu(), torch.cat([g.double().cpu().flatten() for g in gradients])


@pytest.mark.parametrize("views", [2, 4])
def test_the_error_of_tf32_is_that_of_ten_bits(views, device):
    """Of a unit row of D = 256: 2^-11 a factor, and far less in a sum of many. Float32 is a thousand times closer."""
    exact, exact_gradient = all_of(device, "float32", torch.float64, views)

    def errors(products):
        loss, gradient = all_of(device, products, views=views)
        off = (gradient - exact_gradient).norm() / exact_gradient.norm()
        return float((loss - exact).abs() / exact), float(off)

    full, coarse = errors("float32"), errors("tf32")
    assert max(full) < 2e-6
    assert coarse[0] < 2e-4 and 1e-5 < coarse[1] < 3e-3


def test_double_precision_knows_no_tf32(device):
    full, coarse = (all_of(device, products, torch.float64) for products in carp.PRODUCTS)
    assert torch.equal(full[0], coarse[0]) and torch.equal(full[1], coarse[1])


def tf32_is_on():
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


@pytest.mark.parametrize("chosen", ["highest", "high"])
@pytest.mark.parametrize("products, inside", [("float32", False), ("tf32", True)])
def test_what_the_process_has_chosen_for_products_is_left_alone(
    products, inside, chosen, monkeypatch
):
    seen, gap = [], carp._entropy_gap

    def looking(mean):
        seen.append(tf32_is_on())
        return gap(mean)

    monkeypatch.setattr(carp, "_entropy_gap", looking)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(chosen)
    try:
        all_of("cpu", products)
        after = torch.get_float32_matmul_precision()
        allowed = tf32_is_on()
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen and set(seen) == {inside}
    assert after == chosen and allowed == (chosen == "high")


@pytest.mark.parametrize(
    "kwargs, says",
    [
        ({"products": "bf16"}, r"products: expected one of \['float32', 'tf32'\], received 'bf16'"),
        ({"products": "tf32", "fused": False}, "'tf32' is for fused=True, received fused=False"),
    ],
)
@pytest.mark.parametrize("function", [carp_loss_func, carp_objective_func])
def test_products_that_there_are_not(function, kwargs, says):
    with pytest.raises(ValueError, match=says):
        function(
            *problem(torch.float32, 1.0)[:2],
            *2 * [problem(torch.float32, 1.0)[2]],
            torch.arange(K),
            B,
            **kwargs,
        )
