"""Draws the features of a checkpoint, student and teacher, with UMAP; needs `pip install carp-plugin[umap]`:

python main_umap.py --pretrained_checkpoint_dir trained_models/carp/RUN
python main_umap.py --pretrained_checkpoint_dir RUN --networks teacher --feature_type projector --out pictures
"""

import sys

from carp_plugin.commands.cli import saying_mistakes, silence_third_parties


def main() -> None:
    """Draws what the flags name."""
    silence_third_parties()
    with saying_mistakes():
        from carp_plugin.commands.umap import (
            main_umap,
        )  # here, for a missing solo-learn is a mistake to say too

        main_umap(sys.argv[1:])


if __name__ == "__main__":
    main()
