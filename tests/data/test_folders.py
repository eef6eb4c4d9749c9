"""When the embedded photographs are written, and when a folder is the user's own."""

from pathlib import Path

import pytest

from carp_plugin.data import folders
from carp_plugin.data.photos import DEFAULT_ROOT, MANIFEST


@pytest.fixture
def written(monkeypatch):
    roots = []
    monkeypatch.setattr(folders, "prepare_photos", roots.append)
    return roots


def prepared(train_path):
    folders.prepare_data_folder("photos", str(train_path))


def test_the_place_of_the_photographs_is_prepared(written):
    prepared(f"{DEFAULT_ROOT}/train")
    prepared(Path(DEFAULT_ROOT, "train").resolve())
    assert written == [Path(DEFAULT_ROOT), Path(DEFAULT_ROOT).resolve()]


def test_photographs_that_stand_elsewhere_are_checked(written, tmp_path):
    (tmp_path / MANIFEST).write_text("{}")
    prepared(tmp_path / "train")
    assert written == [tmp_path]


def test_a_folder_of_the_user_is_left_alone(written, tmp_path):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    prepared(tmp_path / "mine" / "train")
    prepared(tmp_path / "slip" / "train")
    assert not written and not (tmp_path / "slip").exists()
