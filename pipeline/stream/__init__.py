"""From shards to batches, in an order that any position can go on from."""
