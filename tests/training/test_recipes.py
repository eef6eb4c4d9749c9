"""Recipes for several nodes: torchrun, sbatch and the submitit launcher, each dry-run on tiny images."""

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from carp_plugin.settings import hydra_defaults
from carp_plugin.settings.pretraining import read_pretraining
from carp_plugin.settings.reading import plain
from carp_plugin.training.devices import Machine
from carp_plugin.training.plan import plan_of
from tests.helpers import METHOD_KWARGS, image_folder
from tests.launching import ROOT, TRAIN, environment, job, summary_of, write_config

RECIPES = ROOT / "scripts" / "pretrain" / "imagenet"
SUBMITIT = importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher")
needs_submitit = pytest.mark.skipif(
    SUBMITIT is None, reason="the submitit launcher is not installed (extra: slurm)"
)

#: srun: starts the tasks of one node, each with what SLURM says to it.
SRUN = """
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    if command.pop(0) in ("--output", "--error"):
        command.pop(0)
tasks = int(os.environ["SLURM_NTASKS_PER_NODE"])
places = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NODEID": "0"} for i in range(tasks)]
running = [subprocess.Popen(command, env={**os.environ, **place}) for place in places]
sys.exit(max(process.wait() for process in running))
"""

#: sbatch: keeps the script, and runs it as the job 1 on one node.
SBATCH = """
import os, re, shutil, subprocess, sys
script = open(sys.argv[-1]).read()
shutil.copy(sys.argv[-1], "script.sh")
tasks = re.search(r"--ntasks-per-node=(\\d+)", script).group(1)
job = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "1",
       "SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_JOB_NAME": "carp",
       "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1"}
command = ["bash", "-c", "bash script.sh; touch finished"]
subprocess.Popen(command, env={**os.environ, **job}, stdout=open("job.out", "w"), stderr=subprocess.STDOUT)
print("Submitted batch job 1")
"""

SACCT = """
import os
state = "COMPLETED" if os.path.exists("finished") else "RUNNING"
print(f"JobID|State|NodeList\\n1|{state}|localhost")
"""
SCONTROL = "import sys; open('requeued', 'w').write(' '.join(sys.argv[1:]))"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=3)


@pytest.fixture
def slurm(tmp_path):
    """Makes SLURM's commands in a folder that a PATH can begin with."""

    def make(**commands):
        folder = tmp_path / "slurm-commands"
        folder.mkdir()
        for name, content in commands.items():
            path = folder / name
            path.write_text(f"#!{sys.executable}\n{content}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])

    return make


def tiny(images, folder):
    """Overrides that make an ImageNet recipe a run of seconds on two CPU processes."""
    kwargs = [f"method_kwargs.{key}={value}" for key, value in METHOD_KWARGS["carp"].items()]
    views = ["crop_size=16", "rrc.crop_min_scale=0.5"]
    views = [f"augmentations.{i}.{view}" for i in (0, 1) for view in views]
    data = ["dataset=custom", "format=image_folder", "num_workers=0"]
    data += [f"train_path={images}/train", f"val_path={images}/val"]
    run = ["accelerator=cpu", "devices=2", "num_nodes=1", "sync_batchnorm=False", "max_epochs=1"]
    run += ["precision=32-true", "optimizer.batch_size=4", "backbone.name=resnet18"]
    run += ["enable_progress_bar=False", f"checkpoint.dir={folder}/trained_models"]
    run += ["data.eval_transform.crop_size=16"]
    return [*run, *(f"data.{each}" for each in data), *kwargs, *views]


def composed(name, *overrides, hydra=False):
    hydra_defaults.install()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(RECIPES), version_base="1.2"):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=hydra)
    GlobalHydra.instance().clear()
    return cfg


@pytest.mark.parametrize("name", ["carp.yaml", "carp_nodes.yaml", "carp_slurm.yaml"])
def test_every_recipe_of_the_paper_has_its_batch_and_learning_rates(name):
    """B.1: 1,024 images a step, 0.6 to 0.06."""
    if name == "carp_slurm.yaml" and SUBMITIT is None:
        pytest.skip("the submitit launcher is not installed (extra: slurm)")
    settings = read_pretraining(plain(composed(name)))
    assert settings.sync_batchnorm and settings.strategy == "ddp" and settings.auto_resume.enabled
    devices = settings.devices if isinstance(settings.devices, tuple) else range(settings.devices)
    machine = Machine("gpu", tuple(devices), settings.num_nodes)
    plan = plan_of(settings, machine, images=1_281_167, classes=1000)
    assert settings.optimizer.batch_size * machine.world == plan.global_batch == 1024
    assert plan.lr == pytest.approx(0.6) and plan.min_lr == settings.scheduler.min_lr == 0.06


@needs_submitit
def test_the_job_follows_nodes_and_devices_of_the_configuration():
    launcher = composed("carp_slurm.yaml", hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 8, 8)
    launcher = composed("carp_slurm.yaml", "num_nodes=4", "devices=2", hydra=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (4, 2, 2)
    assert launcher.max_num_timeout > 0 and launcher.signal_delay_s >= 60


@pytest.mark.slow
@needs_submitit
def test_submitit_sends_off_a_job_that_trains(images, tmp_path, slurm):
    """sbatch gets the right script, whose two tasks find each other, train and report back."""
    path = slurm(sbatch=SBATCH, srun=SRUN, sacct=SACCT)
    command = [sys.executable, "-W", "ignore", TRAIN, "--config-path", str(RECIPES)]
    command += ["--config-name", "carp_slurm.yaml", "-m", *tiny(images, tmp_path)]
    command += ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90"]
    variables = environment(
        PATH=path, PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    with job(tmp_path, (command, variables)) as started:
        (ended,) = started.ended()
    said = (tmp_path / "job.out").read_text()
    assert ended.code == 0, (ended, said)
    script = (tmp_path / "script.sh").read_text()
    for flag in ("nodes=1", "ntasks-per-node=2", "gpus-per-node=2", "time=90", "partition=gpu"):
        assert f"#SBATCH --{flag}\n" in script
    assert "#SBATCH --signal=USR2@120" in script and "\nsrun " in script
    assert summary_of(tmp_path)["steps"] == 2 and said.count("global batch") == 1


def test_the_batch_script_is_bash_and_asks_for_what_the_recipe_needs():
    script = RECIPES / "carp.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    asked = dict(
        line[len("#SBATCH --") :].split("=", 1)
        for line in lines
        if line.startswith("#SBATCH") and "=" in line
    )
    cfg = composed("carp_nodes.yaml")
    assert int(asked["nodes"]) == cfg.num_nodes
    assert int(asked["ntasks-per-node"]) == int(asked["gpus-per-node"]) == cfg.devices
    assert asked["signal"] == "TERM@120" and "#SBATCH --requeue" in lines
    assert int(asked["cpus-per-task"]) > cfg.data.num_workers


@pytest.mark.slow
def test_the_batch_script_trains(images, tmp_path, slurm):
    """With an srun that starts two tasks of one node."""
    path = slurm(srun=SRUN, scontrol=SCONTROL)
    variables = {"SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "carp", "SLURM_NNODES": 1}
    variables.update(SLURM_NTASKS=2, SLURM_NTASKS_PER_NODE=2, MASTER_ADDR="127.0.0.1", PATH=path)
    command = ["bash", str(RECIPES / "carp.sbatch"), *tiny(images, tmp_path)]
    with job(ROOT, (command, environment(**variables))) as started:
        (ended,) = started.ended()
    assert ended.code == 0, ended
    assert ended.out.count("global batch") == 1 and "Traceback" not in ended.err
    content = summary_of(tmp_path)
    assert content["steps"] == content["plan"]["total_steps"] == 2
    assert content["config"]["devices"] == 2 and content["plan"]["machine"]["devices"] == [0, 1]


@pytest.mark.parametrize("code, requeued", [(143, True), (2, False), (0, False)])
def test_the_batch_script_queues_a_job_again_that_saved_and_left(code, requeued, tmp_path, slurm):
    path = slurm(srun=f"raise SystemExit({code})", scontrol=SCONTROL)
    variables = environment(PATH=path, SLURM_JOB_ID=7, SLURM_NNODES=2, SLURM_NTASKS_PER_NODE=8)
    with job(tmp_path, (["bash", str(RECIPES / "carp.sbatch")], variables)) as started:
        (ended,) = started.ended()
    assert ended.code == code
    queued = tmp_path / "requeued"
    assert queued.exists() == requeued
    assert not requeued or queued.read_text() == "requeue 7"


def torchrun(*arguments):
    return [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", *arguments]


@pytest.mark.slow
def test_torchrun_trains_on_two_nodes(images, tmp_path):
    """Two "nodes" of one process each; only the first process of all speaks."""
    named = write_config(tmp_path / "configs", images, strategy="ddp", max_epochs=1, num_nodes=2)
    commands = []
    for node in (0, 1):
        place = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"]
        place += ["--master-addr=127.0.0.1", f"--master-port={29600 + os.getpid() % 300}"]
        commands.append((torchrun(*place, TRAIN, *named, "optimizer.batch_size=4"), environment()))
    with job(tmp_path, *commands) as started:
        first, second = started.ended()
    assert (first.code, second.code) == (0, 0), (first, second)
    assert first.out.count("1 x cpu, 2 nodes") == 1 and not second.out.strip()
    assert summary_of(tmp_path)["steps"] == 2 and "global batch   8 images" in first.out


@pytest.mark.slow
def test_torchrun_on_one_machine_says_a_mistake_once(images, tmp_path):
    """As many processes as devices, or they would wait for each other for ever."""
    named = write_config(tmp_path / "configs", images, strategy="ddp")
    command = torchrun("--standalone", "--nproc-per-node=2", TRAIN, *named, "devices=3")
    with job(tmp_path, (command, environment())) as started:
        (ended,) = started.ended()
    assert ended.code != 0 and not list(tmp_path.rglob("*.ckpt"))
    assert len(ended.mistakes) == 1, ended.err
    assert "torchrun started 2 processes" in ended.mistakes[0]
    assert "add devices=2 num_nodes=1" in ended.mistakes[0]
