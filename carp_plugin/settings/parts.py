"""Nodes of keys that several kinds of runs have."""

from __future__ import annotations

from typing import ClassVar, Literal, Optional, Tuple, Union

from pydantic import ConfigDict, model_validator

from carp_plugin.settings.kinds import (
    BelowOne,
    Count,
    Fraction,
    Free,
    Index,
    Int,
    NotNegative,
    Number,
    Part,
    PathText,
    Pixels,
    Positive,
    Probability,
    Seed,
    Share,
    Signed,
    Switch,
    Text,
)
from carp_plugin.settings.model import Given, Settings, key, rule

#: Data sets that are known by name, with their classes; "custom" counts the folders.
CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "imagenet": 1000,
    "imagenet100": 100,
    "fashion_mnist": 10,
}
#: Those that torchvision keeps in files of its own, and downloads.
DOWNLOADED = ("cifar10", "cifar100", "stl10")

Dataset = Literal[
    "cifar10", "cifar100", "stl10", "imagenet", "imagenet100", "fashion_mnist", "custom"
]
Format = Literal["image_folder", "dali", "h5"]
Network = Literal["student", "teacher"]
FeatureKind = Literal["backbone", "projector"]


class Backbone(Settings):
    """The network whose features are learnt."""

    name: Text = key(..., "a backbone of the host: resnet18, resnet50, vit_small …")
    kwargs: Free = key({}, "what its constructor takes besides, as zero_init_residual")


class Size(Settings):
    """How images are brought to a size for evaluation."""

    resize: Optional[Pixels] = key(
        None, "the shorter side is resized to it; null leaves images at their size", unit="pixels"
    )
    crop_size: Pixels = key(..., "central crop", unit="pixels")

    @model_validator(mode="after")
    def _no_black_border(self) -> Size:
        if self.resize is not None and self.resize < self.crop_size:
            raise rule(
                f"{{at}}resize={self.resize} is smaller than {{at}}crop_size={self.crop_size}, which would pad images "
                "with black; give at least as many pixels, or null to leave images at their size."
            )
        return self


class Holdout(Settings):
    """Training images that are validated on, in place of the validation images."""

    fraction: Part = key(..., "of every class")
    seed: Index = key(0, "another seed holds out other images")


class Data(Settings):
    """Where images are, and how they are read."""

    dataset: Dataset = key(..., "a data set of the host, fashion_mnist, or custom: folders")
    train_path: PathText = key(
        ...,
        "training images: one folder a class, or the data set's own; fashion_mnist: auto finds it",
    )
    val_path: Optional[PathText] = key(None, "validation images, in folders of the same names")
    format: Format = key("image_folder", "dali reads folders with NVIDIA DALI, h5 one HDF5 file")
    num_workers: Int = key(
        ..., "processes that read images; 0 reads them in this one", identity=False, ge=0, le=512
    )
    fraction: Fraction = key(-1, "stratified part of the training images")
    train_images: Optional[Count] = key(
        None, "so many training images are drawn, of every class its share; null: all"
    )
    val_images: Optional[Count] = key(None, "so many validation images, likewise")
    subset_seed: Seed = key(0, "of these draws")
    holdout: Optional[Holdout] = key(
        None, "validates on a part of the training images, which are not trained on"
    )
    prepare: Optional[Literal["photos", "download"]] = key(
        None,
        "photos writes the embedded photographs to datasets/photos, download gets fashion_mnist",
        identity=False,
    )
    max_bad_fraction: Number = key(
        0.01, "of the training images that may be unreadable: others stand in", ge=0, le=0.5
    )
    max_pixels: Count = key(
        178_956_970, "an image of more is bad: a few bytes may unpack to all memory", unit="pixels"
    )
    eval_transform: Optional[Size] = key(
        None, "null: the host's transform of the data set (256, then 224 pixels)"
    )

    @model_validator(mode="after")
    def _readable_so(self) -> Data:
        if self.dataset == "fashion_mnist" and self.format != "image_folder":
            raise rule(
                f"{{at}}format={self.format} does not read fashion_mnist; set {{at}}format=image_folder."
            )
        if self.prepare == "download" and self.dataset != "fashion_mnist":
            raise rule(
                f"{{at}}prepare=download is for fashion_mnist, not {self.dataset}; set {{at}}prepare=null."
            )
        return self

    @model_validator(mode="after")
    def _drawn_from_labels(self) -> Data:
        drawn = [name for name in ("train_images", "val_images", "holdout") if getattr(self, name)]
        if drawn and self.format == "h5":
            raise rule(
                f"{{at}}{drawn[0]} cannot be drawn from an HDF5 file, which does not tell the classes of its images "
                "before they are read; set {at}format=image_folder."
            )
        if self.holdout and (getattr(self, "no_labels", False) or self.val_path is None):
            raise rule(
                "{at}holdout takes the place of labelled validation images, and this run has none; give {at}val_path "
                "(its images are not read then) and leave {at}no_labels=False."
            )
        if self.val_images and self.val_path is None:
            raise rule(
                "{at}val_images has no validation images to draw from; give {at}val_path as well."
            )
        return self


class OptimizerKwargs(Given):
    """What an optimizer takes besides; each takes its own: the others are refused by name."""

    momentum: Probability = key(0.9, "sgd, lars: factor of the momentum")
    dampening: Probability = key(0.0, "sgd, lars: of the momentum")
    nesterov: Optional[Switch] = key(False, "sgd, lars: Nesterov's momentum")
    eta: NotNegative = key(1e-3, "lars: trust coefficient")
    clip_lr: Optional[Switch] = key(False, "lars: the adapted rate is at most the learning rate")
    exclude_bias_n_norm: Optional[Switch] = key(
        False, "lars: biases and norms are not adapted, and do not decay"
    )
    eps: NotNegative = key(1e-8, "lars, adam, adamw: added to the denominator")
    betas: Tuple[BelowOne, BelowOne] = key((0.9, 0.999), "adam, adamw: decay of the two means")
    amsgrad: Optional[Switch] = key(False, "adam, adamw")
    decoupled_weight_decay: Optional[Switch] = key(False, "adam: as in adamw")
    maximize: Optional[Switch] = key(False, "torch's: minimises the negative loss", identity=True)
    foreach: Optional[Switch] = key(None, "torch's implementation; null lets torch choose")
    fused: Optional[Switch] = key(None, "torch's implementation; null lets torch choose")
    capturable: Optional[Switch] = key(False, "torch's: for CUDA graphs")
    differentiable: Optional[Switch] = key(False, "torch's")


class Optimizer(Settings):
    """The optimizer; the rates are for 256 images and are scaled by the global batch / 256."""

    name: Literal["sgd", "lars", "adam", "adamw"] = key(..., "optimizer")
    batch_size: Count = key(..., "images a step and device", unit="images")
    lr: NotNegative = key(..., "peak rate for 256 images; x global batch / 256")
    weight_decay: NotNegative = key(..., "weight decay")
    exclude_bias_n_norm_wd: Switch = key(False, "biases and norms do not decay")
    kwargs: OptimizerKwargs = key(OptimizerKwargs(), "what the optimizer takes besides")


class Scheduler(Settings):
    """How the learning rate runs."""

    name: Literal["warmup_cosine", "step", "none"] = key(..., "schedule")
    min_lr: NotNegative = key(0.0, "rate at the end of the cosine; never scaled by the batch")
    warmup_start_lr: NotNegative = key(3e-5, "rate at the first step of a warm-up")
    warmup_epochs: NotNegative = key(10, "length of the warm-up; 0 is none", unit="epochs")
    lr_decay_steps: Optional[Tuple[Index, ...]] = key(
        None, "step: epochs at which the rate is divided by 10", min_length=1
    )
    interval: Literal["step", "epoch"] = key("step", "how often the rate moves")

    @model_validator(mode="after")
    def _steps_of_step(self) -> Scheduler:
        if self.name == "step" and not self.lr_decay_steps:
            raise rule("{at}name=step needs {at}lr_decay_steps, a list of epochs.")
        return self


class Checkpoint(Settings):
    """Checkpoints of a run; the last two are kept."""

    enabled: Switch = key(False, "write checkpoints")
    dir: PathText = key("trained_models", "each run has a folder of its own below DIR/METHOD")
    frequency: Count = key(
        1, "between two checkpoints; the last epoch is always saved", unit="epochs"
    )
    keep_prev: Switch = key(False, "keep all of them")


class AutoResume(Settings):
    """Going on where the same command stopped."""

    enabled: Switch = key(False, "resume the last run of the very same settings")
    max_hours: Number = key(36.0, "older runs are left alone", unit="hours", ge=0, le=1_000_000)


class Wandb(Settings):
    """Logging to Weights & Biases."""

    enabled: Switch = key(False, "log there")
    entity: Optional[Text] = key(None, "user or team")
    project: Optional[Text] = key("solo-learn", "project")
    offline: Switch = key(False, "write to ./wandb only")


class Performance(Settings):
    """What makes a step faster."""

    disable_channel_last: Switch = key(False, "keep torch's own memory format")


class Dali(Settings):
    """NVIDIA DALI, where data.format=dali."""

    device: Literal["cpu", "gpu"] = key("gpu", "where images are decoded")


class Momentum(Settings):
    """The teacher, a momentum copy of the student."""

    base_tau: Probability = key(0.99, "its momentum at the first step (eta in the paper)")
    final_tau: Probability = key(1.0, "at the last step, on a cosine; both 0: no momentum encoder")
    classifier: Switch = key(False, "an online classifier on the teacher as well")

    @model_validator(mode="after")
    def _tau_grows(self) -> Momentum:
        if self.base_tau > self.final_tau:
            raise rule(
                f"{{at}}base_tau={self.base_tau:g} is above {{at}}final_tau={self.final_tau:g}: the teacher's tau "
                "grows; for a siamese run set both to 0."
            )
        return self


class Crop(Settings):
    """Random resized crop."""

    enabled: Switch = key(..., "False only resizes")
    crop_min_scale: Share = key(..., "smallest part of the image's area")
    crop_max_scale: Share = key(..., "largest part")

    @model_validator(mode="after")
    def _scales_rise(self) -> Crop:
        low, high = self.crop_min_scale, self.crop_max_scale
        if low > high:
            raise rule(
                f"{{node}}: expected crop_min_scale <= crop_max_scale, got {low:g} and {high:g}."
            )
        return self


class ColorJitter(Settings):
    """Random changes of colour."""

    prob: Probability = key(..., "probability")
    brightness: NotNegative = key(..., "strength")
    contrast: NotNegative = key(..., "strength")
    saturation: NotNegative = key(..., "strength")
    hue: Number = key(..., "strength", ge=0, le=0.5)


class Chance(Settings):
    """A step that is taken or not."""

    prob: Probability = key(..., "probability")


class RandAugment(Settings):
    """RandAugment of timm, behind all other steps but grey scale."""

    num_ops: Int = key(
        0, "operations drawn for a view, each done half of the time; 0 is none", ge=0, le=15
    )
    magnitude: Int = key(10, "their strength", ge=0, le=10)
    magnitude_std: Number = key(0.5, "standard deviation of the strength", ge=0, le=10)


class Pipeline(Settings):
    """How one or several views of an image are made; views as large as the first pipeline's are large views."""

    rrc: Crop = key(..., "random resized crop")
    color_jitter: ColorJitter = key(..., "colour jitter")
    grayscale: Chance = key(..., "grey scale")
    gaussian_blur: Chance = key(..., "Gaussian blur")
    solarization: Chance = key(..., "solarisation")
    equalization: Chance = key(..., "equalised histogram")
    horizontal_flip: Chance = key(..., "flip")
    rand_augment: RandAugment = key(RandAugment(), "RandAugment")
    crop_size: Pixels = key(..., "side of a view", unit="pixels")
    num_crops: Int = key(..., "views of this kind", ge=1, le=100)
    mean: Optional[Tuple[Signed, Signed, Signed]] = key(
        None, "of the channels; null: ImageNet's (cifar and stl have their own)"
    )
    std: Optional[Tuple[Positive, Positive, Positive]] = key(None, "of the channels")


class HostMethodKwargs(Given):
    """The keys of the host's methods by the kind of value they have; which method has which, the host knows."""

    model_config = ConfigDict(extra="allow")

    proj_hidden_dim: Count = key(2048, "neurons of the projector's hidden layers")
    proj_output_dim: Count = key(256, "size of an embedding")
    pred_hidden_dim: Count = key(512, "neurons of the predictor's hidden layer")
    num_prototypes: Union[Count, Tuple[Count, ...]] = key(3000, "prototypes; deepclusterv2: a list")
    queue_size: Index = key(65536, "rows of the queue")
    epoch_queue_starts: Index = key(15, "swav", unit="epochs")
    freeze_prototypes_epochs: Index = key(1, "swav", unit="epochs")
    kmeans_iters: Count = key(10, "deepclusterv2: iterations of k-means")
    sk_iters: Count = key(3, "swav: iterations of Sinkhorn-Knopp")
    sk_epsilon: Positive = key(0.05, "swav: entropy of Sinkhorn-Knopp")
    temperature: Positive = key(0.1, "temperature")
    temperature_q: Positive = key(0.1, "ressl: of the student")
    temperature_k: Positive = key(0.04, "ressl: of the teacher")
    student_temperature: Positive = key(0.1, "dino")
    teacher_temperature: Positive = key(0.07, "dino")
    warmup_teacher_temperature: Positive = key(0.04, "dino")
    warmup_teacher_temperature_epochs: Index = key(0, "dino", unit="epochs")
    freeze_last_layer: Union[Switch, Index] = key(1, "dino")
    norm_last_layer: Switch = key(True, "dino")
    use_bn_in_head: Switch = key(False, "dino")
    clip_grad: NotNegative = key(0.0, "dino: largest norm of a gradient")
    lamb: NotNegative = key(0.0051, "barlow_twins: weight off the diagonal")
    scale_loss: Positive = key(0.024, "barlow_twins: scale of the loss")
    sim_loss_weight: NotNegative = key(25.0, "vicreg, vibcreg")
    var_loss_weight: NotNegative = key(25.0, "vicreg, vibcreg")
    cov_loss_weight: NotNegative = key(1.0, "vicreg, vibcreg")
    iternorm: Switch = key(False, "vibcreg")
    whitening_size: Count = key(256, "wmse")
    whitening_iters: Count = key(1, "wmse")
    whitening_eps: NotNegative = key(0.0, "wmse")
    supervised: Switch = key(False, "simclr, where the host has it")
    mask_ratio: Probability = key(0.75, "mae")
    norm_pix_loss: Switch = key(False, "mae")
    decoder_embed_dim: Count = key(512, "mae")
    decoder_depth: Count = key(8, "mae")
    decoder_num_heads: Count = key(16, "mae")


class CarpKwargs(Settings):
    """The keys of CARP: appendix B.1 of the paper, and the choices that it leaves open."""

    owner: ClassVar[str] = "carp"

    proj_hidden_dim: Count = key(2048, "neurons of the two hidden layers of the projector")
    proj_output_dim: Count = key(256, "D, size of an embedding")
    num_prototypes: Count = key(65536, "K, a multiple of B")
    partition_size: Count = key(512, "B (N_B in the paper), prototypes of a block")
    partition: Literal["random", "constant"] = key(
        "random", "fresh blocks at every step, or fixed ones (table 7)"
    )
    consistency_weight: NotNegative = key(
        1.0, "1 averages the two symmetric pairs, as the released code; 2 adds them, as eq. (3)"
    )
    entropy_weight: NotNegative = key(1.0, "of the entropy gap: 1 in CARP, tuned in CARL (eq. 2)")
    teacher_prototypes: Literal["momentum", "student"] = key(
        "momentum", "a momentum copy, as in B.2, or the student's (formula of section 3)"
    )
    normalize_prototypes: Switch = key(True, "unit rows, or a plain linear layer")
    fused: Switch = key(True, "the loss in one pass, or written out as in the paper")
    products: Literal["float32", "tf32"] = key(
        "float32", "inputs of the loss's products; tf32, 10 bits, is for a card's tensor cores"
    )

    @model_validator(mode="after")
    def _products_of_the_fused_loss(self) -> CarpKwargs:
        if self.products != "float32" and not self.fused:
            raise rule(
                f"{{at}}products={self.products} is for {{at}}fused=True; set it, or {{at}}products=float32."
            )
        return self

    @model_validator(mode="after")
    def _blocks_are_equal(self) -> CarpKwargs:
        K, B = self.num_prototypes, self.partition_size
        if K % B:
            below = K - K % B
            near = " or ".join(str(k) for k in (below, below + B) if k)
            raise rule(
                f"{{at}}num_prototypes={K} must be a multiple of {{at}}partition_size={B}: blocks are equal; use "
                f"{near} prototypes, or another block size."
            )
        return self
