"""From manifest rows to published shards: plan, resume, label, verify, recompute."""
