"""Linear evaluation of a pretrained backbone, on CARP's or any method's checkpoint:

python main_linear.py --config-name carp.yaml pretrained_feature_extractor=trained_models/carp/RUN
python main_linear.py --config-path scripts/linear/imagenet --config-name carp.yaml pretrained_feature_extractor=PATH
"""

from carp_plugin.commands.entries import linear

if __name__ == "__main__":
    linear()
