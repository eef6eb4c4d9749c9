"""Pretrains CARP, or any method of the installed solo-learn:

python main_pretrain.py --config-name carp.yaml
python main_pretrain.py --config-path scripts/pretrain/cifar --config-name carp.yaml max_epochs=200
"""

import hydra
from omegaconf import DictConfig

from carp_plugin.cli import guarded, saying_mistakes

CONFIGS = "scripts/pretrain"


@hydra.main(version_base="1.2", config_path=CONFIGS)
def main(cfg: DictConfig) -> None:
    """Trains what the configuration says."""
    from carp_plugin.pretrain import pretrain

    with saying_mistakes():
        pretrain(cfg)


if __name__ == "__main__":
    guarded(main, CONFIGS)
