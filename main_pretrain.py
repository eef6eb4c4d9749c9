"""Pretrains CARP, or any method of the installed solo-learn:

python main_pretrain.py --config-name carp.yaml
python main_pretrain.py --config-path scripts/pretrain/cifar --config-name carp.yaml max_epochs=200
"""

import hydra
from omegaconf import DictConfig

from carp_plugin.commands.cli import guarded, saying_mistakes

CONFIGS = "scripts/pretrain"


@hydra.main(version_base="1.2", config_path=CONFIGS)
def main(cfg: DictConfig) -> None:
    """Trains what the configuration says."""
    with saying_mistakes():
        from carp_plugin.training.pretraining import (
            pretrain,
        )  # here, for a missing solo-learn is a mistake to say too

        pretrain(cfg)


if __name__ == "__main__":
    guarded(main, CONFIGS)
