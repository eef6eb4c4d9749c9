"""Fine-tuning, appendix C.2 of the paper: a classifier on a pretrained backbone, and all of it trained with labels.

Every parameter of the backbone moves, and so do the running statistics of batch norm. With random weights in place of
pretrained ones it is the supervised reference.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.table import Table

from carp_plugin.data.labelled import LabelledData
from carp_plugin.data.used import place
from carp_plugin.errors import UserError
from carp_plugin.evaluation.checkpoint import Pretrained
from carp_plugin.evaluation.classifier import FEW, ClassifierRun
from carp_plugin.host import BACKBONES, HOST, make_contiguous
from carp_plugin.settings.finetune import Finetune, FinetuneScheduler
from carp_plugin.training.callbacks.finite import FiniteLoss
from carp_plugin.training.plan import Plan
from carp_plugin.training.report import block_of, provenance, rows_of, steps_line
from carp_plugin.training.state import file_sha256


@dataclass(frozen=True)
class Start:
    """The network that a fine-tuning begins with.

    Attributes:
        backbone: images (N, 3, H, W) to features (N, F), with the layers of the projector that are kept.
        name: of the backbone, as the host calls it.
        pretrained: the checkpoint that its weights are of; None where they are random.
        head_layers: how many layers of the projector are kept.
    """

    backbone: nn.Module
    name: str
    pretrained: Optional[Pretrained]
    head_layers: int = 0

    @property
    def words(self) -> str:
        """Whose weights they are, for a table."""
        if self.pretrained is None:
            return f"random {self.name}"
        return self.pretrained.method + self.head

    @property
    def head(self) -> str:
        """What is kept of the projector, as the end of a phrase."""
        if not self.head_layers:
            return ""
        return f" with {self.head_layers} layer{'s' * (self.head_layers > 1)} of its projector"


class WithHead(nn.Module):
    """A backbone and the first layers of a projector behind it, as one network.

    Args:
        backbone: images (N, 3, H, W) to features (N, F).
        head: features (N, F) to (N, G).
        num_features: G.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, num_features: int) -> None:
        super().__init__()
        self.backbone, self.head, self.num_features = backbone, head, num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, G)."""
        return self.head(self.backbone(images))


def with_head(pretrained: Pretrained, network: str, layers: int) -> nn.Module:
    """A pretrained backbone with the first layers of its projector: SimCLR v2 fine-tunes from the middle of the head.

    A layer is a linear one with what follows it, batch norm and activation, up to the next linear one.

    Args:
        pretrained: the checkpoint.
        network: ``"student"`` or ``"teacher"``.
        layers: how many to keep; 0 is the backbone alone, all of them are what the projector gives.

    Raises:
        UserError: the method has no such network, no projector of that many layers, or none that can be cut.
    """
    backbone = pretrained.backbone(network)
    if not layers:
        return backbone
    projector = pretrained.projector(network)
    parts = list(projector) if isinstance(projector, nn.Sequential) else []
    starts = [i for i, part in enumerate(parts) if isinstance(part, nn.Linear)]
    if not starts or starts[0] != 0:
        raise UserError(
            f"head_layers={layers}: the projector of {pretrained.method} is no sequence of linear layers that could be "
            "cut; give head_layers=0."
        )
    if layers > len(starts):
        raise UserError(
            f"head_layers={layers}: the projector of {pretrained.method} in {pretrained.path} has {len(starts)} "
            f"layers; give head_layers={len(starts)} or less."
        )
    end = len(parts) if layers == len(starts) else starts[layers]
    last: Any = parts[starts[layers - 1]]
    return WithHead(backbone, nn.Sequential(*parts[:end]), last.out_features)


def random_backbone(name: str, kwargs: Mapping[str, Any], dataset: str, seed: int) -> nn.Module:
    """A backbone as the host's methods make it, with the random weights of a seed.

    Args:
        name: a key of ``BACKBONES``.
        kwargs: what its constructor takes besides.
        dataset: for images of CIFAR the host gives a ResNet a smaller first convolution and no pooling after it.
        seed: of the weights.

    Raises:
        UserError: the constructor refuses ``kwargs``.
    """
    seed_everything(seed, verbose=False)
    constructor = BACKBONES[name]
    # current solo-learn's take the method, for backbones of which one needs another kind
    extra = {"method": None} if "method" in inspect.signature(constructor).parameters else {}
    try:
        backbone = constructor(**extra, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{name} cannot be built ({reason}); check or leave out backbone.kwargs."
        ) from error
    if name.startswith("resnet"):
        backbone.fc = nn.Identity()
        if dataset in ("cifar10", "cifar100"):
            backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
            backbone.maxpool = nn.Identity()
    return backbone


class FineTuning(LightningModule):
    """A backbone and a linear classifier, trained with cross-entropy by SGD at two rates.

    Args:
        backbone: images (N, 3, H, W) to features (N, F); has ``inplanes`` or ``num_features``.
        classes: C.
        lr: of the backbone.
        classifier_lr: of the classifier.
        weight_decay: of both.
        sgd: what the optimizer takes besides: momentum, nesterov.
        milestones: epochs after which both rates are multiplied by ``gamma``; none where it is empty.
        gamma: their factor.
        channels_last: the memory format of the images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        *,
        lr: float,
        classifier_lr: float,
        weight_decay: float = 0.0,
        sgd: Optional[Mapping[str, Any]] = None,
        milestones: Sequence[int] = (),
        gamma: float = 0.2,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        features: Any = getattr(backbone, "inplanes", None) or backbone.num_features
        self.classifier = nn.Linear(features, classes)
        self.rates = (lr, classifier_lr)
        self.sgd = {"weight_decay": weight_decay, "momentum": 0.9, **(sgd or {})}
        self.milestones, self.gamma = list(milestones), gamma
        self.channels_last = channels_last
        self.top = (1,) if classes <= FEW else (1, 5)
        #: Sums over the validation images: cross-entropy, hits of each ``top``, images.
        self._sums: List[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Images (N, 3, H, W) to ``feats`` (N, F) and ``logits`` (N, C)."""
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        feats = self.backbone(images)
        return {"logits": self.classifier(feats), "feats": feats}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross-entropy of a batch of images (N, 3, H, W) and labels (N,)."""
        images, targets_N = batch
        logits_NC = self(images)["logits"]
        loss = F.cross_entropy(logits_NC, targets_N)
        shares = hits(logits_NC, targets_N, self.top) * (100 / len(targets_N))
        named = {f"train_acc{k}": share for k, share in zip(self.top, shares)}
        self.log_dict({"train_loss": loss, **named}, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds up what an epoch's validation is averaged from."""
        images, targets_N = batch
        logits_NC = self(images)["logits"].float()
        loss = F.cross_entropy(logits_NC, targets_N, reduction="sum")
        counted = hits(logits_NC, targets_N, self.top)
        count = counted.new_tensor([len(targets_N)])
        self._sums.append(torch.cat([loss[None].to(counted), counted, count]))

    def on_validation_epoch_end(self) -> None:
        """Logs ``val_loss`` and ``val_acc`` over the images of all ranks."""
        if not self._sums:
            return
        total = torch.stack(self._sums).sum(dim=0)
        self._sums.clear()
        total = self.trainer.strategy.reduce(total, reduce_op="sum")  # type: ignore[assignment]
        loss, *counted, count = total.tolist()
        named = {f"val_acc{k}": 100 * one / count for k, one in zip(self.top, counted)}
        self.log_dict({"val_loss": loss / count, **named})

    def configure_optimizers(self) -> Any:
        """SGD over two groups, ``backbone`` and ``classifier``, and one schedule for both."""
        lr, classifier_lr = self.rates
        groups: List[Dict[str, Any]] = [
            {"name": "backbone", "params": list(self.backbone.parameters()), "lr": lr},
            {"name": "classifier", "params": list(self.classifier.parameters())},
        ]
        optimizer = torch.optim.SGD(groups, lr=classifier_lr, **self.sgd)
        if not self.milestones:
            return optimizer
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, self.gamma)
        return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]


def hits(logits_NC: torch.Tensor, targets_N: torch.Tensor, top: Sequence[int]) -> torch.Tensor:
    """How many labels are among the first k classes, for every k of ``top``: (len(top),) float32."""
    ranks = logits_NC.detach().topk(max(top), dim=1).indices
    right = ranks == targets_N[:, None]
    return torch.stack([right[:, :k].any(dim=1).sum() for k in top]).float()


def build_model(settings: Finetune, start: Start, plan: Plan) -> FineTuning:
    """The backbone with a classifier, every parameter of it to be trained, in training mode.

    The classifier's first weights are those of the seed, whatever the backbone.
    """
    scheduler, optimizer = settings.scheduler, settings.optimizer
    steps = _steps(scheduler)  # type: ignore[arg-type]
    seed_everything(settings.seed, verbose=False)
    model = FineTuning(
        start.backbone,
        plan.classes,
        lr=plan.lr,
        classifier_lr=plan.classifier_lr,
        weight_decay=optimizer.weight_decay,
        sgd=optimizer.kwargs.model_dump(),
        milestones=steps,
        gamma=scheduler.gamma,  # type: ignore[attr-defined]
        channels_last=not settings.performance.disable_channel_last,
    )
    make_contiguous(model)
    if model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    # a momentum copy is pretrained without gradients
    return model.requires_grad_(True).train()


def _steps(scheduler: FinetuneScheduler) -> Tuple[int, ...]:
    return scheduler.lr_decay_steps if scheduler.name == "step" else ()


def rates_of(settings: Finetune, plan: Plan) -> List[Dict[str, Any]]:
    """The rates of the epochs, a row for each stretch of equal ones; epochs counted from 1."""
    scheduler: Any = settings.scheduler
    begins = [0, *(step for step in _steps(scheduler) if step < settings.max_epochs)]
    ends = [*begins[1:], settings.max_epochs]
    return [
        {
            "epochs": [begin + 1, end],
            "lr": plan.lr * scheduler.gamma**lowered,
            "classifier_lr": plan.classifier_lr * scheduler.gamma**lowered,
        }
        for lowered, (begin, end) in enumerate(zip(begins, ends))
    ]


def _of_start(settings: Finetune, start: Start) -> Dict[str, Any]:
    """What a run began with and saw of its images; resume compares it."""
    transforms, pretrained = settings.data.model_dump(mode="json"), start.pretrained
    return {
        "sha256": None if pretrained is None else file_sha256(pretrained.path),
        "network": None if pretrained is None else settings.network,
        "head_layers": start.head_layers,
        "backbone": start.name,
        "train_transform": transforms["train_transform"],
        "eval_transform": transforms["eval_transform"],
    }


class FinetuneRun(ClassifierRun):
    """A fine-tuning that is ready to go.

    Args:
        settings: of the fine-tuning.
        start: what it begins with.
        model: of :func:`build_model`.
        data: labelled images, with the subset.
        plan: the numbers of the run.
        remarks: sentences on the settings and the data that were said at its beginning, for the summary.
    """

    settings: Finetune

    def __init__(
        self,
        settings: Finetune,
        start: Start,
        model: FineTuning,
        data: LabelledData,
        plan: Plan,
        remarks: Sequence[str] = (),
    ) -> None:
        if data.subset is None:
            raise ValueError(
                "data: expected labelled data with the subset that was drawn, received no subset"
            )
        self.start, self.subset, self.remarks = start, data.subset, list(remarks)
        args = {
            **settings.values(),
            "accelerator": plan.machine.accelerator,
            "devices": list(plan.machine.devices),
            "features": _of_start(settings, start),
            "subset": {k: v for k, v in data.subset.as_dict().items() if "sha256" in k},
        }
        super().__init__(settings, args, model, data, plan, "finetune")

    def callbacks(self) -> List[Callback]:
        """Those of every run, and the guard against a loss that is not finite."""
        change = "begin anew with a lower optimizer.lr or optimizer.classifier_lr"
        return [FiniteLoss(self.checkpointer, change), *super().callbacks()]

    def summary(self, hits: torch.Tensor, trainer: Trainer, seconds: float) -> Dict[str, Any]:
        """What ``summary.json`` holds; of few classes there is no top-5."""
        last, pretrained = self.last_checkpoint(), self.start.pretrained
        accuracies = self.accuracies(hits)
        if self.plan.classes <= FEW:
            accuracies.update(top5=None, best_top5=None)
        return {
            "name": self.settings.name,
            "pretrain_method": None if pretrained is None else pretrained.method,
            "backbone": self.start.name,
            "network": None if pretrained is None else self.settings.network,
            "head_layers": self.start.head_layers,
            "weights": self.settings.weights,
            "labels": self.subset.as_dict(),
            "seed": self.settings.seed,
            **accuracies,
            "classes": self.plan.classes,
            "images": {"train": self.data.images, "val": self.data.val_images},
            "subsets": self.data.drawn,
            "rates": rates_of(self.settings, self.plan),
            "steps": trainer.global_step,
            "seconds": round(seconds, 1),
            "pretrained": None
            if pretrained is None
            else {
                "checkpoint": str(pretrained.path),
                "sha256": self.args["features"]["sha256"],
                "epoch": pretrained.epoch,
                "loaded": pretrained.sentence,
            },
            "checkpoint": None if last is None else str(last),
            "remarks": self.remarks,
            "plan": self.plan.as_dict(),
            **provenance(self.plan.machine, self.settings.values()),
        }

    def closing(self, summary: Dict[str, Any]) -> Table:
        """The table that a run ends with."""
        whose = (
            f"{self.start.words}, from labels alone"
            if self.start.pretrained is None
            else f"{summary['network']} of {self.start.words}, fine-tuned"
        )
        table = Table(
            title=f"{whose}: accuracy, %",
            caption=f"with the labels of {of_all(self.data)}; on {summary['images']['val']} validation images, which "
            "also chose the best epoch",
        )
        table.add_column("network of")
        table.add_column("top-1", justify="right")
        if summary["top5"] is not None:
            table.add_column("top-5", justify="right")
        for which, kind in (
            ("the last epoch", ""),
            (f"the best epoch, {summary['best_epoch']}", "best_"),
        ):
            shown = [summary[f"{kind}top1"], summary[f"{kind}top5"]]
            table.add_row(which, *(f"{value:.2f}" for value in shown if value is not None))
        return table


def of_all(data: LabelledData) -> str:
    """How many of the training images, and which."""
    subset = data.subset
    if subset is None or subset.images == subset.total:
        return f"all {data.images:,} images"
    return f"{subset.images:,} of {subset.total:,} images ({subset.name})"


def remarks_on_subset(data: LabelledData, classes: int) -> List[str]:
    """What a user is to know of the labels that a fine-tuning has."""
    subset = data.subset
    if subset is None or -1 in subset.classes or len(subset.classes) == classes:
        return []
    missing = classes - len(subset.classes)
    return [
        f"warning: {subset.name} has no image of {missing} of the {classes} classes, which cannot be learnt from it."
    ]


def opening(settings: Finetune, start: Start, data: LabelledData, plan: Plan) -> Table:
    """The block that a run opens with."""
    pretrained, subset = start.pretrained, data.subset
    optimizer = settings.optimizer
    if pretrained is None:
        network = [
            ("network", f"{start.name}, random weights: from labels alone, all of it trained")
        ]
    else:
        network = [
            ("checkpoint", pretrained.sentence),
            (
                "network",
                f"{settings.network} of {pretrained.method}{start.head}, {start.name}, all of it trained",
            ),
        ]
    spans = [
        f"{row['lr']:.4g} and {row['classifier_lr']:.4g} in epochs {row['epochs'][0]} to {row['epochs'][1]}"
        for row in rates_of(settings, plan)
    ]
    labels = [] if subset is None else [("labels", f"{of_all(data)}, sha256 {subset.sha256[:12]}")]
    return block_of(
        [
            ("host", str(HOST)),
            *network,
            (
                "data",
                f"{data.images} images to train, {data.val_images} to validate, {plan.classes} classes, "
                f"{place(settings.data)} ({settings.data.format})",
            ),
            *rows_of(data.drawn),
            *labels,
            ("device", str(plan.machine)),
            ("global batch", f"{plan.global_batch} images"),
            (
                "learning rates",
                f"backbone and classifier ({optimizer.name}; optimizer.lr, optimizer.classifier_lr x batch / 256):",
            ),
            *(("", span) for span in spans),
            ("steps", steps_line(plan, settings.max_epochs, settings.seed)),
        ]
    )
