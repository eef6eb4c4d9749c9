from typing import NamedTuple
import torch
class S(NamedTuple):
    information: torch.Tensor
    prototypes_used: torch.Tensor
def assignment_statistics(embeddings, prototypes, permutation, partition_size, *, max_blocks=8):
    return S(torch.zeros(()), torch.zeros(()))
