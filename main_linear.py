"""Linear evaluation of a pretrained backbone, on CARP's or any method's checkpoint:

python main_linear.py --config-name carp.yaml pretrained_feature_extractor=trained_models/carp/RUN
python main_linear.py --config-path scripts/linear/imagenet --config-name carp.yaml pretrained_feature_extractor=PATH
"""

import hydra
from omegaconf import DictConfig

from carp_plugin.commands.cli import guarded, saying_mistakes

CONFIGS = "scripts/linear/photos"


@hydra.main(version_base="1.2", config_path=CONFIGS)
def main(cfg: DictConfig) -> None:
    """Evaluates what the configuration says."""
    with saying_mistakes():
        from carp_plugin.evaluation.linear import (
            linear,
        )  # here, for a missing solo-learn is a mistake to say too

        linear(cfg)


if __name__ == "__main__":
    guarded(main, CONFIGS, keys_of="carp_plugin.settings.linear")
