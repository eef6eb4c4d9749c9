"""Fine-tuning of a pretrained network with a part of the labels or all of them, of CARP's or any method's checkpoint:

python main_finetune.py --config-name carp.yaml pretrained_feature_extractor=trained_models/carp/RUN
python main_finetune.py --config-path scripts/finetune/imagenet --config-name carp_1percent.yaml \
    pretrained_feature_extractor=PATH labels.file=1percent.txt
"""

from carp_plugin.commands.entries import finetune

if __name__ == "__main__":
    finetune()
