"""What a checkpoint of the host's own script may hold besides tensors."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, List

import omegaconf

#: The host's own script leaves the optimizer's settings in a checkpoint as a node of OmegaConf: containers of plain
#: values, which run nothing when they are read.
CONTAINERS: List[Any] = [
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.base.ContainerMetadata,
    omegaconf.base.Metadata,
    omegaconf.nodes.AnyNode,
    Any,
    defaultdict,
    dict,
    int,
    list,
]
