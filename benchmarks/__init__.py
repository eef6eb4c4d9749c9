"""Measurements against a budget or another implementation; knn, loss, monitor, start and step are run as scripts."""
