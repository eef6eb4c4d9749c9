"""Protocols on a checkpoint's frozen features, student and teacher, which are computed once for all of them:

python main_evaluate.py --pretrained_checkpoint_dir trained_models/carp/RUN
python main_evaluate.py --pretrained_checkpoint_dir RUN --protocols knn logistic --knn.k 20 --json evaluation.json
"""

from carp_plugin.commands.entries import evaluate

if __name__ == "__main__":
    evaluate()
