"""Weights for a teacher: training a codec, fitting residual codebooks or centroids."""
