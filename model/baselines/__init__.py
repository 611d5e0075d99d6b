"""What an encoder is compared with: spectra, codec latents, a tagger, untrained encoders."""
