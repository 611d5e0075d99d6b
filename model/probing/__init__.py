"""Heads on frozen features: trained all at once, chosen on validation, scored with intervals."""
