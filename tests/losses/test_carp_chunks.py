"""How many blocks the fused loss takes at a time: as many as its memory target has room for."""

import pytest
import torch

from carp_plugin.losses import carp
from carp_plugin.losses.carp import _blocks_per_chunk, _Layout, carp_objective_func


def blocks_of(images=128, blocks=128, size=512, dim=256, views=2, dtype=torch.float32):
    z_RD = torch.empty(views * images, dim, dtype=dtype)
    return _blocks_per_chunk(_Layout(views, images, blocks, size), z_RD)


@pytest.mark.parametrize(("images", "expected"), [(64, 5), (128, 4), (256, 2), (512, 1)])
def test_the_sizes_of_the_paper(images, expected):
    """16 MiB / (512 * (10 N + 3 * 256) * 4 bytes)."""
    assert blocks_of(images) == expected


def test_at_least_one_block_and_never_more_than_there_are():
    assert blocks_of(images=512, blocks=1, size=65536) == 1
    assert blocks_of(images=512, blocks=4, size=65536) == 1
    assert blocks_of(images=1, blocks=3, size=2, dim=4) == 3


def test_more_blocks_of_less():
    assert blocks_of(size=64) == 8 * blocks_of(size=512)
    assert blocks_of(dtype=torch.float64) == blocks_of() // 2
    assert blocks_of(views=6) < blocks_of()


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("prototypes", [256, 1024])
def test_what_a_pass_holds_is_what_the_rule_counts(views, prototypes, monkeypatch):
    """Its buffers fill the target as far as whole blocks do, however many prototypes there are."""
    images, size, dim = 5, 16, 7
    per_block = size * 4 * (images * (2 * (views + 2) + views) + 3 * dim)  # 2 views or 3
    monkeypatch.setattr(carp, "CHUNK_BYTES_CPU", 3 * per_block + per_block // 2)
    spaces = []

    class Kept(carp._Workspace):
        def __init__(self, like):
            super().__init__(like)
            spaces.append(self)

    monkeypatch.setattr(carp, "_Workspace", Kept)
    student = [torch.randn(images, dim, requires_grad=True) for _ in range(views)]
    teacher = [torch.randn(images, dim) for _ in range(2)]
    C = torch.randn(prototypes, dim, requires_grad=True)
    carp_objective_func(student, teacher, C, C.detach().clone(), torch.randperm(prototypes), size)
    (space,) = spaces
    held = sum(4 * buffer.numel() for buffer in space._buffers.values())
    assert held == 3 * per_block
