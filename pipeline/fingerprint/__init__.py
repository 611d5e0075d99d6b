"""Acoustic fingerprints: whether a recording holds a stretch of another, however it was encoded, trimmed or scaled."""
