"""The shard format, which labelling and training share: targets, examples, records, the index, reading."""
