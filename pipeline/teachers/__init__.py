"""Teachers: audio in, targets out; one file for each, and the registry of all."""
