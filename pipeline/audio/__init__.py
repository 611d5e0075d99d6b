"""One file's sound as a stream of samples: containers, decoding, resampling, levels."""
