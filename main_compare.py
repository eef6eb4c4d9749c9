"""Compares CARP with methods of the installed solo-learn, at the same data, backbone, views and budget:

python main_compare.py --config-name photos.yaml
python main_compare.py --config-name photos.yaml methods=[carp,byol] seeds=[0,1] max_epochs=2 dir=results/short
"""

import hydra
from omegaconf import DictConfig

from carp_plugin.commands.cli import guarded, saying_mistakes

CONFIGS = "scripts/compare"


@hydra.main(version_base="1.2", config_path=CONFIGS)
def main(cfg: DictConfig) -> None:
    """Compares what the configuration names."""
    with saying_mistakes():
        from carp_plugin.commands.compare import (
            compare,
        )  # here, for a missing solo-learn is said too

        compare(cfg)


if __name__ == "__main__":
    guarded(main, CONFIGS, keys_of="carp_plugin.compare.plan")
