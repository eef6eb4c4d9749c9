"""solo-learn 1.0.2, the release on PyPI, brought to the vocabulary of the current main branch.

1.0.2 takes argparse keywords, calls the backbone ``encoder``, and was written for pytorch_lightning 1.4
and lightning-bolts. ``imports`` lets it be imported, ``config`` parses a cfg, ``optim`` holds optimizer and
schedule, ``methods`` and ``linear`` build its modules from a cfg, ``data`` and ``dali`` its transforms and
data sets, ``runs`` its checkpointer.
"""

from carp_plugin.host.pypi.imports import mend_whitening, solo_importable

with solo_importable():
    import solo.methods  # noqa: F401  (everything below finds it imported)
mend_whitening()

from carp_plugin.host.common import serve_files  # noqa: E402
from carp_plugin.host.pypi.config import (  # noqa: E402
    omegaconf_select,
    parse_linear_cfg,
    parse_pretrain_cfg,
)
from carp_plugin.host.pypi.dali import (  # noqa: E402
    DALI_AVAILABLE,
    ClassificationDALIDataModule,
    PretrainDALIDataModule,
    build_transform_pipeline_dali,
)
from carp_plugin.host.pypi.data import (  # noqa: E402
    FullTransformPipeline,
    NCropAugmentation,
    build_transform_pipeline,
    prepare_classification_data,
    prepare_classification_dataloaders,
    prepare_classification_datasets,
    prepare_classification_transforms,
    prepare_datasets,
)
from carp_plugin.host.pypi.knn import WeightedKNNClassifier  # noqa: E402
from carp_plugin.host.pypi.linear import LinearModel  # noqa: E402
from carp_plugin.host.pypi.methods import (  # noqa: E402
    BACKBONES,
    METHODS,
    BaseMethod,
    BaseMomentumMethod,
    MomentumUpdater,
    initialize_momentum_params,
    make_contiguous,
    method_keys,
)
from carp_plugin.host.pypi.optim import LARS, LinearWarmupCosineAnnealingLR  # noqa: E402
from carp_plugin.host.pypi.runs import AutoUMAP, Checkpointer  # noqa: E402

__all__ = [
    "AutoUMAP",
    "BACKBONES",
    "BaseMethod",
    "BaseMomentumMethod",
    "Checkpointer",
    "ClassificationDALIDataModule",
    "DALI_AVAILABLE",
    "FullTransformPipeline",
    "LARS",
    "LinearModel",
    "LinearWarmupCosineAnnealingLR",
    "METHODS",
    "MomentumUpdater",
    "NCropAugmentation",
    "PretrainDALIDataModule",
    "WeightedKNNClassifier",
    "build_transform_pipeline",
    "build_transform_pipeline_dali",
    "initialize_momentum_params",
    "make_contiguous",
    "method_keys",
    "omegaconf_select",
    "parse_linear_cfg",
    "parse_pretrain_cfg",
    "prepare_classification_data",
    "prepare_classification_dataloaders",
    "prepare_classification_datasets",
    "prepare_classification_transforms",
    "prepare_datasets",
    "serve_files",
]
