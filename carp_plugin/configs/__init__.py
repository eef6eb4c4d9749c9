"""Shared parts of the configurations in scripts/: found by Hydra as pkg://carp_plugin.configs."""
