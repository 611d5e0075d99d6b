"""The run folder: checkpoints, metrics, and the history read back."""
