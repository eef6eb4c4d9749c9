"""Keys that every training has: those of Lightning's trainer, and what stands beside them."""

from __future__ import annotations

from typing import Any, Dict, Literal, Optional, Union

from carp_plugin.settings.kinds import (
    LARGEST_WHOLE,
    Batches,
    BatchesOrNone,
    Count,
    Devices,
    Duration,
    FileName,
    Index,
    Int,
    NotNegative,
    Off,
    PathText,
    Seed,
    Steps,
    Switch,
    Text,
)
from carp_plugin.settings.model import Settings, key
from carp_plugin.settings.parts import (
    AutoResume,
    Checkpoint,
    Performance,
    Scheduler,
    Wandb,
)

#: Keys that a run has whether they are given or not.
_ALWAYS = ("accelerator", "devices", "num_nodes")
#: Arguments of Lightning's trainer that are objects of ours.
NOT_FROM_A_FILE = ("logger", "callbacks", "plugins", "enable_checkpointing", "model_registry")


class Trainer(Settings):
    """Arguments of Lightning's trainer; null is Lightning's own default."""

    max_epochs: Count = key(..., "epochs of the run", unit="epochs")
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = key("auto", "auto: a card where one is")
    devices: Devices = key(
        "auto", "1, [0], '0,1' or auto: one process on a CPU, every card elsewhere"
    )
    num_nodes: Int = key(1, "machines", ge=1, le=10_000)
    strategy: Optional[Text] = key(None, "ddp for several devices; null: auto")
    precision: Optional[Union[Text, Count]] = key(None, "32-true, 16-mixed, bf16-mixed …")
    sync_batchnorm: Optional[Switch] = key(None, "batch norm over all GPUs")
    accumulate_grad_batches: Count = key(1, "batches whose gradients make a step", unit="batches")
    gradient_clip_val: Optional[NotNegative] = key(None, "largest gradient")
    gradient_clip_algorithm: Optional[Literal["norm", "value"]] = key(None, "what is clipped")
    deterministic: Optional[Union[Switch, Literal["warn"]]] = key(None, "the same bits each time")
    benchmark: Optional[Switch] = key(None, "let cuDNN look for its fastest convolutions")
    max_steps: Steps = key(-1, "ends the run early", unit="steps")
    min_steps: Optional[Count] = key(None, "optimizer steps at least", unit="steps")
    min_epochs: Optional[Count] = key(None, "epochs at least", unit="epochs")
    max_time: Optional[Duration] = key(
        None,
        "of one process from its first step: it then saves and leaves with 143, and the same command goes on",
        identity=False,
    )
    limit_train_batches: Optional[Batches] = key(None, "a share of an epoch's batches, or a number")
    limit_val_batches: Optional[BatchesOrNone] = key(None, "of the validation's batches")
    limit_test_batches: Optional[BatchesOrNone] = key(None, "not used here")
    limit_predict_batches: Optional[BatchesOrNone] = key(None, "not used here")
    overfit_batches: Off = key(0, "must stay 0")
    val_check_interval: Optional[Batches] = key(None, "validate within an epoch")
    check_val_every_n_epoch: Optional[Count] = key(None, "between validations", unit="epochs")
    num_sanity_val_steps: Optional[Int] = key(
        None, "validation before training; -1: all", ge=-1, le=LARGEST_WHOLE
    )
    log_every_n_steps: Optional[Count] = key(
        None, "between two log lines; null: 50, or an epoch", identity=False, unit="steps"
    )
    enable_progress_bar: Optional[Switch] = key(None, "progress bars", identity=False)
    enable_model_summary: Optional[Switch] = key(None, "print the layers", identity=False)
    profiler: Optional[Literal["simple", "advanced", "pytorch"]] = key(
        None, "time the hooks", identity=False
    )
    fast_dev_run: Switch = key(False, "one batch of each loop")
    detect_anomaly: Optional[Switch] = key(None, "find the step that made a NaN; slow")
    barebones: Optional[Switch] = key(None, "nothing but training, for timing")
    inference_mode: Optional[Switch] = key(None, "validate in torch's inference mode")
    use_distributed_sampler: Optional[Switch] = key(None, "not used: the order is our own")
    reload_dataloaders_every_n_epochs: Optional[Index] = key(None, "0: never", unit="epochs")
    default_root_dir: Optional[PathText] = key(None, "where Lightning writes what has no place")
    enable_autolog_hparams: Optional[Switch] = key(None, "log the settings to the logger")

    def given(self) -> Dict[str, Any]:
        """Those of Lightning's arguments that were given, and not as null."""
        names = [name for name in Trainer.model_fields if name in self.model_fields_set]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Run(Trainer):
    """What every training is told."""

    name: FileName = key(..., "of the run: its checkpoints are named after it")
    scheduler: Scheduler = key(..., "schedule of the learning rate")
    checkpoint: Checkpoint = key(Checkpoint(), "checkpoints", identity=False)
    auto_resume: AutoResume = key(AutoResume(), "resuming", identity=False)
    wandb: Wandb = key(Wandb(), "Weights & Biases", identity=False)
    performance: Performance = key(Performance(), "speed")
    seed: Seed = key(5, "of order, views, weights and partitions")
    resume_from_checkpoint: Optional[PathText] = key(
        None, "a .ckpt file to go on from", identity=False
    )

    def values(self) -> Dict[str, Any]:
        """Every key and its value, as YAML and json have them; null and Lightning's own defaults are left out."""
        found = self.model_dump(mode="json", exclude_none=True)
        for name in set(Trainer.model_fields) - self.model_fields_set - set(_ALWAYS):
            found.pop(name, None)
        return found
