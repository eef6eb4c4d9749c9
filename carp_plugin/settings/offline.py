"""What main_knn.py and main_umap.py are told: flags, the checkpoint's own args.json fills in the rest."""

from __future__ import annotations

from typing import Literal, Optional, Tuple

from carp_plugin.settings.kinds import Count, Index, PathText, Positive, Seed, Text
from carp_plugin.settings.model import Settings, key
from carp_plugin.settings.parts import Dataset, FeatureKind, Network


class Offline(Settings):
    """A checkpoint, and the labelled images that it is evaluated on."""

    pretrained_checkpoint_dir: PathText = key(..., "a run's folder or a .ckpt file")
    feature_type: Optional[Tuple[FeatureKind, ...]] = key(
        None, "features; all that the method has where left out", min_length=1
    )
    networks: Optional[Tuple[Network, ...]] = key(
        None, "networks; all that the method has where left out", min_length=1
    )
    dataset: Optional[Dataset] = key(None, "data set; the pretraining's where left out")
    train_data_path: Optional[PathText] = key(None, "training images, one folder a class")
    val_data_path: Optional[PathText] = key(None, "validation images, in folders of the same names")
    train_images: Optional[Count] = key(
        None, "so many training images are drawn, of every class its share"
    )
    val_images: Optional[Count] = key(None, "so many validation images, likewise")
    subset_seed: Optional[Seed] = key(None, "of these draws; the pretraining's where left out")
    data_format: Optional[Literal["image_folder", "h5"]] = key(None, "how images are read")
    batch_size: Optional[Count] = key(None, "images at once")
    num_workers: Optional[Index] = key(None, "processes that read images")
    device: Optional[Text] = key(None, "cpu, cuda or cuda:N; a card where there is one")


class Knn(Offline):
    """k-NN of a checkpoint, appendix C.3 of the paper."""

    k: Tuple[Count, ...] = key((10, 20, 100, 200), "numbers of neighbours", min_length=1)
    temperature: Tuple[Positive, ...] = key((0.07,), "tau of the votes", min_length=1)
    distance_function: Tuple[Literal["cosine", "euclidean"], ...] = key(
        ("cosine",), "solo-learn's flag; only cosine is offered", min_length=1
    )
    index: Literal["exact", "ivf", "hnsw"] = key(
        "exact", "ivf and hnsw are approximate; recall is measured"
    )
    store: Optional[PathText] = key(
        None, "folder for the features, mapped from there instead of held in memory"
    )
    feature_dtype: Literal["float16", "float32"] = key(
        "float16", "float32 keeps every bit, as the host does, in twice the memory"
    )
    json_file: Optional[PathText] = key(None, "writes the result to this file too")


class Umap(Offline):
    """UMAP pictures of a checkpoint's features."""

    feature_type: Tuple[FeatureKind, ...] = key(("backbone",), "features", min_length=1)
    out: Optional[PathText] = key(None, "folder of the pictures; the run's folder")
    seed: Seed = key(0, "of UMAP: the same seed, the same map")
