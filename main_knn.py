"""Offline k-NN of a checkpoint, student and teacher, appendix C.3 of the paper; takes solo-learn's flags:

python main_knn.py --pretrained_checkpoint_dir trained_models/carp/RUN
python main_knn.py --pretrained_checkpoint_dir RUN --k 20 200 --feature_type backbone --json knn.json
"""

from carp_plugin.commands.entries import knn

if __name__ == "__main__":
    knn()
