"""Whole shards of an object store, kept for a while in a bounded folder of this machine."""
