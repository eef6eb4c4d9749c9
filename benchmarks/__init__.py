"""Measurements against a budget or another implementation: knn.py, loss.py and step.py are run as scripts."""
