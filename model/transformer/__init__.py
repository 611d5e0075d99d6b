"""From frames to hidden states, each layer by its own settings."""
