"""Offline k-NN of a checkpoint, student and teacher, appendix C.3 of the paper; takes solo-learn's flags:

python main_knn.py --pretrained_checkpoint_dir trained_models/carp/RUN
python main_knn.py --pretrained_checkpoint_dir RUN --k 20 200 --feature_type backbone --json knn.json
"""

import sys

from carp_plugin.commands.cli import saying_mistakes, silence_third_parties


def main() -> None:
    """Evaluates what the flags name."""
    silence_third_parties()
    with saying_mistakes():
        from carp_plugin.commands.knn import (
            main_knn,
        )  # here, for a missing solo-learn is a mistake to say too

        main_knn(sys.argv[1:])


if __name__ == "__main__":
    main()
