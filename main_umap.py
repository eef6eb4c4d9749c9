"""Draws the features of a checkpoint, student and teacher, with UMAP; needs `pip install carp-plugin[umap]`:

python main_umap.py --pretrained_checkpoint_dir trained_models/carp/RUN
python main_umap.py --pretrained_checkpoint_dir RUN --networks teacher --feature_type projector --out pictures
"""

from carp_plugin.commands.entries import umap

if __name__ == "__main__":
    umap()
