"""Pretrains CARP, or any method of the installed solo-learn:

python main_pretrain.py --config-name carp.yaml
python main_pretrain.py --config-path scripts/pretrain/cifar --config-name carp.yaml max_epochs=200
"""

from carp_plugin.commands.entries import pretrain

if __name__ == "__main__":
    pretrain()
