"""What watches a training run or keeps it: checkpoints, history, resumed momentum."""
