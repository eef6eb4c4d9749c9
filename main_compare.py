"""Compares CARP with methods of the installed solo-learn, at the same data, backbone, views and budget:

python main_compare.py --config-name photos.yaml
python main_compare.py --config-name photos.yaml methods=carp,byol seeds=0,1 max_epochs=2 dir=results/short
"""

from carp_plugin.commands.entries import compare

if __name__ == "__main__":
    compare()
