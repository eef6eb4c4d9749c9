"""Shared parts of the configurations in scripts/: found by Hydra as pkg://carp_plugin.configs.

Hydra looks for a package, so this file stays; the folders below it are groups and need none. No group may have the
name of a configuration key, or ``key=value`` on the command line would choose a file of that group; but for
``augmentations``, whose files are its values.
"""
