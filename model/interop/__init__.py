"""Weights from others and to others, without running their code."""
