"""What a pre-training run is, what it begins from, and how it reports."""
