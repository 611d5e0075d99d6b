"""Weights for a teacher: training a codec, fitting centroids."""
