"""From audio to frames: wave convolutions, with a constant-Q transform beside them, or log-mel patches."""
