"""The mathematics of CARP: functions of tensors, no configuration and no state."""

from carp_plugin.losses.carp import CARPLossTerms, carp_loss_func, carp_objective_func

__all__ = ["CARPLossTerms", "carp_loss_func", "carp_objective_func"]
