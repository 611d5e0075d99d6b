"""The EnCodec encoder and quantiser in chunks and batches, and the weights that ship with the package."""
