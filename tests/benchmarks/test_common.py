"""Results outlive an interruption and are not mixed with others."""

import json

import pytest
import torch

from benchmarks.common import Record, about, device_named, settings_of
from carp_plugin.errors import UserError

CPU = torch.device("cpu")


def test_a_record_goes_on_where_it_was_stopped(tmp_path):
    path = tmp_path / "new" / "loss.json"
    record = Record(path, {"dim": 4})
    record.add("one", 1)
    again = Record(path, {"dim": 4})
    assert again.results == {"one": 1}
    again.add("two", [2.5])
    again.write(verdicts=["within"])
    assert json.loads(path.read_text()) == {
        "settings": {"dim": 4},
        "results": {"one": 1, "two": [2.5]},
        "verdicts": ["within"],
    }
    assert Record(path, {"dim": 4}, fresh=True).results == {}


def test_results_of_other_settings_are_not_continued(tmp_path):
    Record(tmp_path / "a.json", {"commit": "1", "threads": 2}).add("one", 1)
    with pytest.raises(UserError, match="results of another commit; add --fresh"):
        Record(tmp_path / "a.json", {"commit": "2", "threads": 2})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"settings": 1}', '{"settings": {}, "results": 3}']
)
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="is no file of results; add --fresh"):
        Record(tmp_path / "a.json", {})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used for results"):
        Record(tmp_path / "file" / "a.json", {})


@pytest.mark.parametrize("name", ["gpux", "meta", "mps"])
def test_a_device_that_cannot_be_measured(name):
    with pytest.raises(UserError, match=f"--device '{name}'"):
        device_named(name)


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        device_named("cuda")


def test_settings_name_the_machine_and_no_path():
    settings = settings_of(CPU, dim=4)
    assert settings["dim"] == 4 and settings["machine"]["threads"] == torch.get_num_threads()
    assert (
        settings["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    )
    assert "location" not in settings["host"] and "config" not in settings
    assert json.loads(json.dumps(settings)) == settings
    assert "threads of" in about(settings)
