"""The gallery of prototypes, on embeddings whose neighbours are known and on a small random model."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from carp_plugin import register
from carp_plugin.compare.gallery import choose, read, render, save
from carp_plugin.data.loaders import labelled_loaders
from carp_plugin.errors import UserError
from carp_plugin.training.devices import machine_of
from carp_plugin.training.pretraining import build_model
from tests.helpers import image_folder, small_settings


@pytest.fixture(scope="module")
def carp(tmp_path_factory):
    """A small CARP without training, a loader of 24 images and their files."""
    register()
    settings = small_settings(image_folder(tmp_path_factory.mktemp("images"), size=16))
    torch.manual_seed(0)
    model = build_model(settings, machine_of(settings))
    views, batch_size = settings.augmentations, settings.optimizer.batch_size
    _, loader = labelled_loaders(settings.data, views[0], batch_size)
    return model, loader, [path for path, _ in loader.dataset.dataset.samples]


@pytest.fixture
def saved(carp, tmp_path):
    path = tmp_path / "gallery.npz"
    save(path, *carp, rows=3, columns=5)
    return path


def picture(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_most_used_prototypes_and_their_nearest_images():
    prototypes = torch.eye(4)[:, :3] + torch.tensor([[0.0, 0, 0]] * 3 + [[0.0, 0, -1]])
    embeddings = torch.tensor(
        [[9.0, 9.1, 0], [0, 1, 0], [0, 2, 1], [0, 1, 0], [5, 0, 1], [0, 0.5, 0]]
    )
    labels = np.array([0, 1, 1, 2, 2, 1])
    found = choose(embeddings, prototypes, labels, rows=3, columns=3)
    # Image 4 goes to prototype 0, all others to 1; 2 and 3 have none and are no rows.
    assert found["prototypes"].tolist() == [1, 0] and found["counts"].tolist() == [5, 1]
    assert found["purity"].tolist() == [0.6, 1.0] and found["majority"].tolist() == [1, 2]
    # Nearest by angle, not by logit (image 0 has the largest); equals in the order of the images.
    assert found["tiles"][0].tolist() == [1, 3, 5]
    assert found["similarities"][0].tolist() == pytest.approx([1, 1, 1])
    assert found["tiles"][1].tolist() == [4, 0, 1]
    assert found["members"].tolist() == [[True] * 3, [True, False, False]]
    assert found["labels"][1].tolist() == [2, 0, 1]


def test_equal_counts_go_to_the_smaller_number_and_chunks_do_not_matter():
    embeddings = torch.eye(5).repeat(2, 1)
    labels = np.zeros(10, dtype=np.int64)
    whole = choose(embeddings, torch.eye(5), labels, rows=3, columns=20)
    parts = choose(embeddings, torch.eye(5), labels, rows=3, columns=20, chunk=3)
    assert whole["prototypes"].tolist() == [0, 1, 2] and whole["tiles"].shape == (3, 10)
    assert all((whole[key] == parts[key]).all() for key in whole)


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_a_model_is_read_as_the_loss_reads_it(network, carp, tmp_path):
    model, loader, files = carp
    with torch.no_grad():  # so that the student is not the teacher
        for parameter in model.projector[-1].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    model.train()
    save(tmp_path / "g.npz", model, loader, files, rows=50, columns=4, network=network)
    assert model.backbone.training and model.momentum_projector.training
    model.eval()
    images = torch.cat([batch for batch, _ in loader])
    prefix = "momentum_" if network == "teacher" else ""
    with torch.no_grad():
        backbone, projector = (getattr(model, prefix + name) for name in ("backbone", "projector"))
        logits = projector(backbone(images)) @ getattr(model, f"{prefix}prototypes")().T
    counts = logits.argmax(dim=1).bincount(minlength=logits.shape[1])
    with np.load(tmp_path / "g.npz") as found:
        assert found["counts"].sum() == len(files) == 24
        assert found["counts"].tolist() == counts[found["prototypes"]].tolist()
        assert (found["files"] == np.array(files)[found["tiles"]]).all()


def test_teacher_without_prototypes_of_its_own_uses_the_students(carp, tmp_path):
    model, loader, files = carp
    own = model.momentum_prototypes
    del model.momentum_prototypes
    try:
        save(tmp_path / "g.npz", model, loader, files)
    finally:
        model.momentum_prototypes = own
    assert read(tmp_path / "g.npz")


def test_same_model_gives_the_same_picture(carp, saved, tmp_path):
    save(tmp_path / "again.npz", *carp, rows=3, columns=5)
    assert render(tmp_path / "again.npz") == render(saved)


def test_rows_carry_caption_images_and_labels(saved):
    rows = read(saved, size=32)
    with np.load(saved) as arrays:
        assert [row.images for row in rows] == arrays["counts"].tolist()
        assert [row.labels for row in rows] == arrays["labels"].tolist()
    first = rows[0]
    assert first.caption.startswith(f"prototype {first.prototype}: {first.images} image")
    assert first.caption.endswith(f"purity {100 * first.purity:.0f} %")
    assert first.data_uri.startswith("data:image/png;base64,")
    assert first.strip.size == (5 * 36 + 4 * 4, 36)


def test_small_tiles_grow_crisp_and_photographs_shrink(saved, tmp_path):
    with np.load(saved) as arrays:
        file, member = str(arrays["files"][0, 0]), bool(arrays["members"][0, 0])
    assert member
    with Image.open(file) as tile:
        pixels = np.asarray(tile.convert("RGB"))
    shown = np.asarray(read(saved, size=64)[0].strip.convert("RGB"))[2:66, 2:66]
    assert (shown == pixels.repeat(4, axis=0).repeat(4, axis=1)).all()
    moved = []
    for i in range(24):
        moved.append(tmp_path / f"{i}.png")
        Image.new("RGB", (300, 224), (i, 100, 200)).save(moved[-1])
    strip = read(saved, size=64, files=moved)[0].strip
    with np.load(saved) as arrays:
        assert strip.getpixel((30, 30))[:3] == (int(arrays["tiles"][0, 0]), 100, 200)


def test_a_grid_has_a_caption_above_each_row(saved):
    grid = picture(render(saved, size=32))
    rows = read(saved, size=32)
    assert grid.size == (max(300, rows[0].strip.width), len(rows) * (36 + 20 + 4))
    for i in range(len(rows)):
        caption = np.asarray(grid.crop((0, i * 60, grid.width, i * 60 + 20)).convert("L"))
        assert caption.min() < 80 and caption[:, -1].min() == 255


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"rows": 0}, "at least one row"),
        ({"network": "pupil"}, "network=pupil is unknown"),
    ],
)
def test_wrong_settings_are_one_sentence(changes, says, carp, tmp_path):
    with pytest.raises(UserError, match=says):
        save(tmp_path / "g.npz", *carp, **changes)


def test_wrong_models_and_files_are_one_sentence(carp, tmp_path):
    model, loader, files = carp
    with pytest.raises(UserError, match="prototypes of CARP; Linear has none"):
        save(tmp_path / "g.npz", torch.nn.Linear(2, 2), loader, files)
    with pytest.raises(UserError, match="given 23 files for 24 images"):
        save(tmp_path / "g.npz", model, loader, files[1:])
    with pytest.raises(UserError, match="the loader gives none"):
        save(tmp_path / "g.npz", model, [], files)


def test_a_model_that_broke_down_is_refused(carp, tmp_path):
    model, loader, files = carp
    bias = model.momentum_projector[-1].bias
    kept = bias.data.clone()
    bias.data.fill_(float("nan"))
    try:
        with pytest.raises(UserError, match="not finite"):
            save(tmp_path / "g.npz", model, loader, files)
    finally:
        bias.data.copy_(kept)


def test_torn_galleries_and_missing_images_are_one_sentence(saved, tmp_path):
    with pytest.raises(UserError, match="none.npz cannot be read"):
        read(tmp_path / "none.npz")
    torn = tmp_path / "torn.npz"
    torn.write_bytes(saved.read_bytes()[:500])
    with pytest.raises(UserError, match="torn.npz cannot be read"):
        read(torn)
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(UserError, match="other.npz cannot be read"):
        render(tmp_path / "other.npz")
    with pytest.raises(UserError, match="gone.png of the gallery cannot be read .it is missing"):
        read(saved, files=[tmp_path / "gone.png"] * 24)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="text.png .* it is no image|it is no image"):
        read(saved, files=[tmp_path / "text.png"] * 24)
