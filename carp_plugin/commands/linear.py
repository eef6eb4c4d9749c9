"""``main_linear.py``: a linear layer on a frozen backbone, and how good it is."""

from __future__ import annotations

import logging
from typing import Any, Dict, List

from carp_plugin import register
from carp_plugin.data.folders import check_data, count_classes, prepare_data_folder
from carp_plugin.data.labelled import labelled_data
from carp_plugin.data.remarks import remarks_on, say_remarks
from carp_plugin.evaluation.checkpoint import load_pretrained
from carp_plugin.evaluation.linear import LinearRun, build_model, check_named, opening
from carp_plugin.methods.known import check_optimizer
from carp_plugin.settings.linear import Linear
from carp_plugin.terminal import is_main_process, say
from carp_plugin.training.convolutions import use_one_pixel_convolutions
from carp_plugin.training.devices import machine_of
from carp_plugin.training.memory import keep_freed_memory
from carp_plugin.training.plan import left_out, plan_of
from carp_plugin.training.run import check_writable
from carp_plugin.training.state import find_checkpoint


def linear(settings: Linear) -> Dict[str, Any]:
    """Trains a linear layer on the frozen backbone of a checkpoint and measures it on the validation images.

    Deterministic on the CPU, given the seed, and the same whether it was interrupted and resumed or not.

    Args:
        settings: of the evaluation.

    Returns:
        Dict[str, Any]: accuracies in percent of the last epoch (``top1``, ``top5``) and of the best one by top-1
        (``best_top1``, ``best_top5``, ``best_epoch``, counted from 0); ``correct``, a bool for each validation image
        in the order of the data set, whether the last epoch's layer gets it right; ``epochs``, a dictionary of metrics
        for each; ``seconds`` of training; and what ``summary.json`` holds besides. Empty on ranks other than 0.

    Raises:
        UserError: a mistake in the settings, the checkpoint, the data or the machine's set-up, or a backbone that did
            not stay frozen.
    """
    register()
    # Lightning greets, advises and counts devices; the opening block says what of it matters.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    check_optimizer(settings.optimizer)
    path = find_checkpoint(settings.pretrained_feature_extractor)
    machine = machine_of(settings)
    data, batch_size = settings.data, settings.optimizer.batch_size
    prepare_data_folder(data.prepare, data.train_path)
    check_data(data)
    check_writable(settings.checkpoint)
    pretrained = load_pretrained(path)
    backbone = pretrained.network(settings.network)
    check_named(settings, pretrained)
    if machine.accelerator == "cpu":
        keep_freed_memory()
        use_one_pixel_convolutions(backbone)
    statistics = pretrained.trained.view
    images = labelled_data(
        data, statistics, batch_size, machine.world, settings.seed, settings.dali.device
    )
    classes = count_classes(data.dataset, data.train_path)
    plan = plan_of(settings, machine, images.images, classes)
    remarks: List[str] = []
    if is_main_process():
        say(opening(settings, pretrained, images, plan))
        remarks = [f"warning: {sentence}" for sentence in left_out(settings, plan)]
        remarks += remarks_on(data)
        say_remarks(remarks)
    model = build_model(settings, pretrained, plan, backbone)
    return LinearRun(settings, pretrained, model, images, plan, remarks).go()
