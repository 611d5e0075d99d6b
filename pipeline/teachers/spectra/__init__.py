"""Spectra as streams: constant-Q, log-mel, chroma."""
