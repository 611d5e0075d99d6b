"""The data side: raw audio in, batches out."""
