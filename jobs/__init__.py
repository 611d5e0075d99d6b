"""One file a command; only here are arguments, environment, Ray and torchrun known."""
