"""What the protocols on frozen features are told: a node each, for ``main_evaluate.py`` and comparisons."""

from __future__ import annotations

from typing import Literal, Optional, Tuple

from pydantic import model_validator

from carp_plugin.errors import did_you_mean
from carp_plugin.settings.kinds import (
    Count,
    Int,
    PathText,
    Pixels,
    Positive,
    Seed,
    Share,
    Switch,
    Text,
)
from carp_plugin.settings.model import Settings, key, rule
from carp_plugin.settings.offline import Offline
from carp_plugin.settings.parts import FeatureKind

#: Names of the protocols, and of their nodes.
Protocol = Literal["knn", "logistic", "clustering", "retrieval", "landmarks", "copies", "voc07"]


#: Labelled data sets that torchvision reads, by the names of its modules or classes.
DATASETS = tuple(
    "caltech101 caltech256 cifar10 cifar100 country211 dtd eurosat fashion_mnist fer2013 fgvc_aircraft flowers102 "
    "food101 gtsrb imagenet imagenette kmnist mnist oxford_iiit_pet pcam rendered_sst2 stanford_cars stl10 sun397 "
    "svhn usps".split()
)


class Neighbours(Settings):
    """k-NN, appendix C.3 of the paper."""

    k: Tuple[Count, ...] = key((10, 20, 100, 200), "numbers of neighbours", min_length=1)
    temperature: Positive = key(0.07, "tau of the votes")


class Logistic(Settings):
    """Multinomial logistic regression on features."""

    C: Tuple[Positive, ...] = key(
        (0.01, 0.1, 1, 10, 100, 1000),
        "inverse strengths of the L2 penalty; the best on held-out training images",
        min_length=1,
    )
    max_iterations: Count = key(1000, "of L-BFGS")
    fractions: Tuple[Share, ...] = key(
        (1.0,), "of the labels of every class: 0.01 and 0.1 as in table 2", min_length=1
    )
    file: Optional[PathText] = key(
        None, "a list of the images whose labels are used, one name a line, beside the fractions"
    )


class Clustering(Settings):
    """k-means and a method's own prototypes against the classes."""

    k: Optional[Tuple[Count, ...]] = key(
        None, "numbers of clusters; null: the classes that the images have", min_length=1
    )
    starts: Int = key(5, "of k-means; the one of highest objective is scored", ge=1, le=1000)
    iterations: Int = key(50, "of each start", ge=1, le=100_000)
    images: Literal["val", "train"] = key("val", "which are clustered, and scored")


class Retrieval(Settings):
    """Labelled validation images ask for others of their class, leave one out."""

    ranks: Tuple[Count, ...] = key((1, 5, 10), "k of recall@k", min_length=1)


class Landmarks(Settings):
    """The revisited Oxford and Paris protocol."""

    ground_truth: Optional[PathText] = key(
        None, "gnd_roxford5k.pkl, gnd_rparis6k.pkl or one of their form"
    )
    images: Optional[PathText] = key(None, "folder of its images, NAME.jpg")
    size: Optional[Pixels] = key(
        None, "longest side of whole images; null: the transform of evaluation", unit="pixels"
    )


class CopyDetection(Settings):
    """Copies that are made of validation images, searched for among all."""

    images: Count = key(200, "validation images at most that are copied")
    transformations: Tuple[Literal["crop", "blur", "jpeg", "overlay", "none"], ...] = key(
        ("crop", "blur", "jpeg", "overlay"), "how they are copied", min_length=1
    )
    distractors: Literal["train", "none"] = key(
        "train", "images that are searched besides the validation images"
    )


class Voc07(Settings):
    """PASCAL VOC 2007 by linear SVMs, table 1 of the paper."""

    root: Optional[PathText] = key(None, "folder that holds VOCdevkit/VOC2007")
    C: Tuple[Positive, ...] = key(
        (0.01, 0.1, 1, 10, 100, 1000),
        "of the SVMs; of several, each class takes the best of a 3-fold cross-validation",
        min_length=1,
    )
    difficult: Literal["left_out", "negative"] = key(
        "left_out", "images whose objects of a class are all difficult; negative: as PCL"
    )
    shots: Tuple[Count, ...] = key((1, 2, 4, 8, 16), "images a class of the low-shot protocol")
    draws: Int = key(5, "of each number of images", ge=1, le=1000)


class Others(Settings):
    """The protocols on frozen features besides k-NN, by their names."""

    logistic: Logistic = key(Logistic(), "logistic regression")
    clustering: Clustering = key(Clustering(), "clusters against classes")
    retrieval: Retrieval = key(Retrieval(), "retrieval of images of a class")
    landmarks: Landmarks = key(Landmarks(), "retrieval of landmarks")
    copies: CopyDetection = key(CopyDetection(), "copy detection")
    voc07: Voc07 = key(Voc07(), "PASCAL VOC 2007")


class Protocols(Others):
    """Every protocol on frozen features, by its name."""

    knn: Neighbours = key(Neighbours(), "k-NN")


class Evaluate(Protocols, Offline):
    """Protocols on the frozen features of a checkpoint, which are computed once for all of them."""

    protocols: Tuple[Protocol, ...] = key(("knn", "logistic"), "which protocols", min_length=1)
    datasets: Optional[Tuple[Text, ...]] = key(
        None,
        "other labelled images than the pretraining's: names of torchvision's data sets such as flowers102, or "
        "NAME=PATH of a folder with train and val or test",
        min_length=1,
    )
    data_root: Optional[PathText] = key(None, "root of torchvision's data sets")
    download: Switch = key(False, "torchvision may download what is missing there")
    feature_type: Tuple[FeatureKind, ...] = key(("backbone",), "features", min_length=1)
    feature_dtype: Literal["float16", "float32"] = key("float32", "how unit rows are kept")
    seed: Seed = key(0, "of every draw")
    json_file: Optional[PathText] = key(None, "writes the result to this file too")

    @model_validator(mode="after")
    def _images_are_given(self) -> Evaluate:
        if "landmarks" in self.protocols and None in (
            self.landmarks.ground_truth,
            self.landmarks.images,
        ):
            raise rule(
                "--protocols landmarks needs --landmarks.ground_truth FILE, such as gnd_roxford5k.pkl, and "
                "--landmarks.images FOLDER, that of its images."
            )
        if "voc07" in self.protocols and self.voc07.root is None:
            raise rule("--protocols voc07 needs --voc07.root FOLDER, that holds VOCdevkit/VOC2007.")
        return self

    @model_validator(mode="after")
    def _datasets_are_known(self) -> Evaluate:
        named = self.datasets or ()
        for given in named:
            name, sign, path = given.partition("=")
            if sign and not (name and path):
                raise rule(f"--datasets {given} must be NAME=PATH, or a name alone.")
            if not sign and name not in DATASETS:
                near = did_you_mean(name, DATASETS) or f"; choose from {', '.join(DATASETS)}"
                raise rule(f"--datasets {name} is unknown{near.rstrip('?.')}, or give NAME=PATH.")
            if not sign and self.data_root is None and (name != "fashion_mnist" or self.download):
                raise rule(f"--datasets {name} needs --data_root PATH, the root of torchvision's.")
        names = [given.partition("=")[0] for given in named]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise rule(f"--datasets names {twice[0]} twice; name each once.")
        if not named and (self.download or self.data_root is not None):
            unused = "--download" if self.download else "--data_root"
            raise rule(f"{unused} is for --datasets NAME, which is not given.")
        return self
