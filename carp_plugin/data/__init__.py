"""Data that carp_plugin brings along; `photos` is the default data set of every first run."""
