"""CARP: consistent assignment of views over random partitions of prototypes (arXiv 2310.12692)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import omegaconf
import torch
import torch.nn as nn
import torch.nn.functional as F

from carp_plugin.host import BaseMomentumMethod, initialize_momentum_params, omegaconf_select
from carp_plugin.host.cfg import plain
from carp_plugin.losses.carp import carp_objective_func
from carp_plugin.losses.statistics import assignment_statistics
from carp_plugin.partition import partition
from carp_plugin.settings.parts import CarpKwargs
from carp_plugin.settings.reading import read


class _UnitRows(torch.autograd.Function):
    """Rows brought to unit length, (K, D): the values of `F.normalize` and a third of its time.

    With u = c / |c| the gradient in c is (g - u <u, g>) / |c|, here row by row in pieces that stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, C_KD: torch.Tensor) -> torch.Tensor:
        """u_KD; a row of zeros stays one."""
        norm_K1 = torch.linalg.vector_norm(C_KD, dim=-1, keepdim=True).clamp_min_(1e-12)
        u_KD = C_KD / norm_K1
        ctx.save_for_backward(u_KD, norm_K1)
        return u_KD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_KD: torch.Tensor) -> torch.Tensor:
        """The gradient in C_KD."""
        rows = 2048 if g_KD.device.type == "cpu" else len(g_KD)  # 2 MB at D = 256
        grad_KD = torch.empty_like(g_KD)
        for u, norm, g, grad in zip(*(t.split(rows) for t in (*ctx.saved_tensors, g_KD, grad_KD))):
            torch.addcmul(g, u, (u * g).sum(-1, keepdim=True), value=-1, out=grad).div_(norm)
        return grad_KD


class Prototypes(nn.Module):
    """The learnable prototypes of the assigner (section 3): K rows of an embedding's size.

    Args:
        num_prototypes: K.
        dim: D, size of an embedding.
        normalize: rows are brought to unit length, a weight-normalised linear layer.
    """

    def __init__(self, num_prototypes: int, dim: int, normalize: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, dim))
        self.normalize = normalize
        # As nn.Linear without bias, and as the last layer of the released head: uniform within 1 / sqrt(D).
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self) -> torch.Tensor:
        """The prototypes as the loss takes them: (K, D)."""
        return _UnitRows.apply(self.weight) if self.normalize else self.weight


class CARP(BaseMomentumMethod):
    """CARP on the host's base for methods with a momentum encoder."""

    def __init__(self, cfg: omegaconf.DictConfig):
        """Implements CARP (https://arxiv.org/abs/2310.12692).

        Extra cfg settings:
            method_kwargs:
                proj_hidden_dim (int): neurons of the two hidden layers of the projector.
                proj_output_dim (int): D, size of an embedding.
                num_prototypes (int): K.
                partition_size (int): B (N_B in the paper), prototypes in a block; divides K.
                partition (str): "random", fresh blocks at every step, or "constant" (table 7).
                consistency_weight (float): 1 averages the two symmetric pairs, as the authors' released code
                    does; 2 adds them, as eq. (3) is written.
                entropy_weight (float): weight of the entropy gap; 1 in CARP, tuned in CARL (eq. 2).
                teacher_prototypes (str): what the teacher is compared with: "momentum", a momentum copy (B.2),
                    or "student", the prototypes themselves (formula of section 3).
                normalize_prototypes (bool): unit rows, or a plain linear layer.
                fused (bool): the loss in one pass without an N x K tensor, or written out as in the paper.
            momentum:
                base_tau, final_tau (float): eta of the teacher's update at the first and the last step, on a
                    cosine; both 0 trains without a momentum encoder (table 5).
        """

        super().__init__(cfg)

        kwargs = cfg.method_kwargs
        self.num_prototypes: int = kwargs.num_prototypes
        self.partition_size: int = kwargs.partition_size
        self.partition: str = kwargs.partition
        self.partition_seed: int = omegaconf_select(cfg, "seed", 5)
        self.consistency_weight: float = kwargs.consistency_weight
        self.entropy_weight: float = kwargs.entropy_weight
        self.teacher_prototypes: str = kwargs.teacher_prototypes
        self.fused: bool = kwargs.fused
        #: Of the last training step, for whoever watches training: what it logged, 0-dim tensors, and the
        #: embeddings of all views (V * N, D). Nothing of it is kept with the weights.
        self.step_metrics: Dict[str, torch.Tensor] = {}
        self.step_embeddings: Optional[torch.Tensor] = None

        # projector
        self.projector = self._projector(kwargs)
        self.prototypes = self._prototypes(kwargs)

        # momentum projector
        self.momentum_projector = self._projector(kwargs)
        initialize_momentum_params(self.projector, self.momentum_projector)
        if self.teacher_prototypes == "momentum":
            self.momentum_prototypes = self._prototypes(kwargs)
            initialize_momentum_params(self.prototypes, self.momentum_prototypes)

    def _projector(self, kwargs: omegaconf.DictConfig) -> nn.Sequential:
        """Three linear layers with batch norm and GELU (B.1), which begin as those of DINO's head do."""
        hidden, output = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        projector = nn.Sequential(
            nn.Linear(self.features_dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, output),
        )
        for layer in projector:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return projector

    def _prototypes(self, kwargs: omegaconf.DictConfig) -> Prototypes:
        return Prototypes(
            kwargs.num_prototypes, kwargs.proj_output_dim, kwargs.normalize_prototypes
        )

    @staticmethod
    def add_and_assert_specific_cfg(cfg: omegaconf.DictConfig) -> omegaconf.DictConfig:
        """Adds method specific default values/checks for config.

        Args:
            cfg (omegaconf.DictConfig): DictConfig object.

        Returns:
            omegaconf.DictConfig: same as the argument, used to avoid errors.

        Raises:
            UserError: an unknown key, or a value out of range.
        """

        # the host fills cfg.momentum key by key; a cfg without the node gets one
        cfg.momentum = omegaconf_select(cfg, "momentum", {})
        cfg = super(CARP, CARP).add_and_assert_specific_cfg(cfg)
        kwargs = read(CarpKwargs, plain(cfg.method_kwargs), within="method_kwargs.")
        for key, value in kwargs.model_dump().items():
            cfg.method_kwargs[key] = value
        return cfg

    @property
    def learnable_params(self) -> List[dict]:
        """Adds projector and prototypes to the parent's learnable parameters.

        Returns:
            List[dict]: list of learnable parameters.
        """

        extra_learnable_params = [
            {"name": "projector", "params": self.projector.parameters()},
            {"name": "prototypes", "params": self.prototypes.parameters()},
        ]
        return super().learnable_params + extra_learnable_params

    @property
    def momentum_pairs(self) -> List[Tuple[Any, Any]]:
        """Adds the projector and, where it has a copy, the prototypes to the parent's momentum pairs.

        Returns:
            List[Tuple[Any, Any]]: list of momentum pairs.
        """

        extra_momentum_pairs: List[Tuple[Any, Any]] = [(self.projector, self.momentum_projector)]
        if self.teacher_prototypes == "momentum":
            extra_momentum_pairs.append((self.prototypes, self.momentum_prototypes))
        return super().momentum_pairs + extra_momentum_pairs

    def forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the backbone and the projector.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the embeddings "z" (N, D).
        """

        out = super().forward(X)
        out.update({"z": self.projector(out["feats"])})
        return out

    def multicrop_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass for the small crops.

        Args:
            X (torch.Tensor): batch of images (N, 3, h, w).

        Returns:
            Dict[str, Any]: the outputs of the parent and the embeddings "z" (N, D).
        """

        out = super().multicrop_forward(X)
        out.update({"z": self.projector(out["feats"])})
        return out

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> Dict[str, Any]:
        """Performs the forward pass of the momentum backbone and projector.

        Args:
            X (torch.Tensor): batch of images (N, 3, H, W).

        Returns:
            Dict[str, Any]: the outputs of the parent and the teacher's embeddings "z" (N, D).
        """

        out = super().momentum_forward(X)
        out.update({"z": self.momentum_projector(out["feats"])})
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Training step for CARP reusing BaseMomentumMethod training step.

        Args:
            batch (Sequence[Any]): a batch of data in the format of [img_indexes, [X], Y], where
                [X] is a list of size num_crops containing batches of images.
            batch_idx (int): index of the batch.

        Returns:
            torch.Tensor: total loss composed of CARP and classification loss.
        """

        out = super().training_step(batch, batch_idx)
        class_loss = out["loss"]
        student, teacher = out["z"], out["momentum_z"]

        prototypes = self.prototypes()
        momentum_prototypes = prototypes.detach()
        if self.teacher_prototypes == "momentum":
            with torch.no_grad():
                momentum_prototypes = self.momentum_prototypes()
        permutation = partition(
            self.partition,
            self.partition_seed,
            self.trainer.global_step,
            self.num_prototypes,
            prototypes.device,
        )

        # ------- consistency of views and entropy of their mean assignment -------
        loss, terms = carp_objective_func(
            student,
            teacher,
            prototypes,
            momentum_prototypes,
            permutation,
            self.partition_size,
            consistency_weight=self.consistency_weight,
            entropy_weight=self.entropy_weight,
            fused=self.fused,
        )

        metrics = {
            "train_carp_loss": loss.detach(),
            "train_consistency": terms.consistency,
            "train_entropy_gap": terms.entropy_gap,
        }
        self.log_dict(metrics, on_epoch=True, sync_dist=True)
        watched = self.watch(student[: self.num_large_crops], prototypes, permutation)
        self.step_metrics = {**metrics, **watched, "train_class_loss": class_loss.detach()}
        self.step_embeddings = torch.cat(list(student)).detach()

        return loss + class_loss

    @torch.no_grad()
    def watch(
        self, large: Sequence[torch.Tensor], prototypes: torch.Tensor, permutation: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        """Logs what tells learning from a constant output; the loss alone does not.

        Args:
            large (Sequence[torch.Tensor]): embeddings of the large views, each (N, D).
            prototypes (torch.Tensor): (K, D).
            permutation (torch.Tensor): (K,), the partition of this step.

        Returns:
            Dict[str, torch.Tensor]: what was logged, 0-dim tensors.
        """

        statistics = assignment_statistics(large, prototypes, permutation, self.partition_size)
        watched = {
            "train_information": statistics.information,
            "train_prototypes_used": statistics.prototypes_used,
            "train_prototypes_perplexity": statistics.perplexity,
            "train_z_std": F.normalize(torch.stack(list(large)), dim=-1).std(dim=1).mean(),
        }
        # averaged over ranks at the epoch's end only: a collective less a step for each
        self.log_dict(watched, on_step=False, on_epoch=True, sync_dist=True)
        return watched
