"""The paper's ablations as recipes: every run of each is one that can begin, and small and large quote one paper."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from carp_plugin.compare.plan import plan
from carp_plugin.settings.comparison import read_comparison
from carp_plugin.settings.reading import plain
from tests.helpers import image_folder
from tests.run_cli import ROOT

ABLATION = ROOT / "scripts" / "ablation"
NAMES = sorted(path.name for path in ABLATION.glob("*.yaml"))
ON_A_CPU = [
    "accelerator=cpu",
    "devices=1",
    "strategy=auto",
    "precision=32-true",
    "++sync_batchnorm=False",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=8)


def asked(path, *overrides):
    GlobalHydra.instance().clear()
    given = ["hydra.searchpath=[pkg://carp_plugin.configs]", *overrides]
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = compose(path.name, overrides=given)
    return read_comparison(plain(cfg))


def planned(path, images, *overrides):
    data = [
        "dataset=custom",
        "prepare=null",
        f"train_path={images}/train",
        f"val_path={images}/val",
    ]
    settings = [f"++data.{one}" for one in data] + ["data.format=image_folder", *overrides]
    return plan(asked(path, *settings))


def test_each_is_there_at_the_papers_setting_and_small():
    assert NAMES == ["figA1.yaml", *(f"table{n}.yaml" for n in range(3, 8))]
    assert NAMES == sorted(path.name for path in (ABLATION / "small").glob("*.yaml"))


@pytest.mark.parametrize("folder", [".", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_every_run_can_begin_and_is_of_carp_alone(name, folder, images):
    found = planned(ABLATION / folder / name, images, *ON_A_CPU)
    assert {job.method for job in found.jobs} == {"carp"} and found.settings.paper
    assert len({str(job.settings["pretrain"]) for job in found.jobs}) == len(found.jobs)
    seeds = {".": 1, "small": 3}[folder]
    assert len(found.jobs) == seeds * len(found.rows)


@pytest.mark.parametrize("name", NAMES)
def test_small_and_large_quote_the_same_numbers(name):
    large, small = (
        {row.paper for row in asked(ABLATION / folder / name).rows()} for folder in (".", "small")
    )
    assert small <= large


def test_the_setting_of_section_6():
    pretrain = plain_of("table3.yaml")
    assert (
        pretrain["max_epochs"] == 50
        and pretrain["settings"]["carp"]["method_kwargs"]["proj_output_dim"] == 128
    )
    assert pretrain["optimizer"]["batch_size"] * len(pretrain["devices"]) == 256


def plain_of(name):
    found = asked(ABLATION / name)
    return {**found.shared, **found.comparison.model_dump(mode="json")}


def test_learning_rates_follow_the_batch_in_table_4():
    """lr by the host's rule; it never scales min_lr, so that each row has its own: 0.06 at 1,024 images."""
    for row in asked(ABLATION / "table4.yaml").rows():
        batch = 4 * row.own["optimizer"]["batch_size"]
        assert row.label == f"batch-{batch}"
        assert row.own["scheduler"]["min_lr"] == pytest.approx(0.06 * batch / 1024)


def test_without_a_momentum_encoder_the_teacher_is_the_student():
    for folder in (".", "small"):
        without = [
            row for row in asked(ABLATION / folder / "table5.yaml").rows() if "no" in row.label
        ]
        assert len(without) in (5, 10)
        assert all(row.own["momentum"] == {"base_tau": 0, "final_tau": 0} for row in without)


@pytest.mark.parametrize("name", ["table3.yaml", "table5.yaml"])
def test_small_rows_have_as_many_blocks_as_the_papers(name):
    def blocks(folder):
        found = asked(ABLATION / folder / name)
        of_all = found.comparison.settings["carp"]["method_kwargs"]
        kwargs = [{**of_all, **row.own["method_kwargs"]} for row in found.rows()]
        return {
            (row.paper, k["num_prototypes"] // k["partition_size"])
            for row, k in zip(found.rows(), kwargs)
        }

    assert blocks("small") <= blocks(".")
