"""From shards to batches, in an order that can be resumed at any position."""
