"""The commands: ``main_*.py`` of a checkout, ``carp-*`` of an installation. Each is imported when it is called."""

from __future__ import annotations

from carp_plugin.commands.cli import Command, FlagCommand

PRETRAIN = Command(
    script="main_pretrain.py",
    name="carp-pretrain",
    about="Pretrains CARP, or any method of the installed solo-learn.",
    recipes="pretrain",
    example="--config-name carp.yaml max_epochs=5",
    model="carp_plugin.settings.pretraining:CarpPretraining",
    read="carp_plugin.settings.pretraining:read_pretraining",
    run="carp_plugin.commands.pretrain:pretrain",
)
LINEAR = Command(
    script="main_linear.py",
    name="carp-linear",
    about="Linear evaluation of a pretrained backbone (appendix C.1), of CARP's or any method's checkpoint.",
    recipes="linear/photos",
    example="--config-name carp.yaml pretrained_feature_extractor=trained_models/carp/RUN network=teacher",
    model="carp_plugin.settings.linear:Linear",
    read="carp_plugin.settings.linear:read_linear",
    run="carp_plugin.commands.linear:linear",
)
FINETUNE = Command(
    script="main_finetune.py",
    name="carp-finetune",
    about="Fine-tunes a pretrained network with labels (appendix C.2), of CARP's or any method's checkpoint.",
    recipes="finetune/photos",
    example="--config-name carp.yaml pretrained_feature_extractor=trained_models/carp/RUN labels.fraction=0.1",
    model="carp_plugin.settings.finetune:Finetune",
    read="carp_plugin.settings.finetune:read_finetune",
    run="carp_plugin.commands.finetune:finetune",
)
COMPARE = Command(
    script="main_compare.py",
    name="carp-compare",
    about="Compares CARP with methods of the installed solo-learn, at the same data, backbone, views and budget.",
    recipes="compare",
    example="--config-name photos.yaml methods=carp,byol seeds=0,1 max_epochs=2 dir=results/short",
    model="carp_plugin.settings.comparison:EveryKey",
    read="carp_plugin.settings.comparison:read_comparison",
    run="carp_plugin.commands.compare:compare",
)


KNN = FlagCommand(
    script="main_knn.py",
    name="carp-knn",
    about="k-NN of a checkpoint (appendix C.3); what is left out is taken from the args.json beside it.",
    model="carp_plugin.settings.offline:Knn",
    run="carp_plugin.commands.knn:knn",
)
EVALUATE = FlagCommand(
    script="main_evaluate.py",
    name="carp-evaluate",
    about="Protocols on the frozen features of a checkpoint, which are computed once for all of them.",
    model="carp_plugin.settings.protocols:Evaluate",
    run="carp_plugin.commands.evaluate:evaluate",
)
UMAP = FlagCommand(
    script="main_umap.py",
    name="carp-umap",
    about="UMAP pictures of a checkpoint's features; what is left out is taken from the args.json beside it.",
    model="carp_plugin.settings.offline:Umap",
    run="carp_plugin.commands.umap:umap",
)

#: Those that a configuration tells what to do, and those that flags do.
CONFIGURED = (PRETRAIN, LINEAR, FINETUNE, COMPARE)
FLAGGED = (KNN, EVALUATE, UMAP)


def pretrain() -> None:
    """``carp-pretrain``."""
    PRETRAIN.main()


def linear() -> None:
    """``carp-linear``."""
    LINEAR.main()


def finetune() -> None:
    """``carp-finetune``."""
    FINETUNE.main()


def compare() -> None:
    """``carp-compare``."""
    COMPARE.main()


def knn() -> None:
    """``carp-knn``."""
    KNN.main()


def evaluate() -> None:
    """``carp-evaluate``."""
    EVALUATE.main()


def umap() -> None:
    """``carp-umap``."""
    UMAP.main()
