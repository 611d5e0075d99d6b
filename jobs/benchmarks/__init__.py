"""Our code measured against the published path, side by side."""
