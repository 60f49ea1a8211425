"""Weights of the shipped models besides the default one; `models.shipped` has their names."""
