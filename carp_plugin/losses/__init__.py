"""The mathematics of CARP: functions of tensors, no configuration and no state."""

from carp_plugin.losses.carp import CARPLossTerms, carp_loss_func, carp_objective_func
from carp_plugin.losses.statistics import AssignmentStatistics, assignment_statistics

__all__ = [
    "AssignmentStatistics",
    "CARPLossTerms",
    "assignment_statistics",
    "carp_loss_func",
    "carp_objective_func",
]
