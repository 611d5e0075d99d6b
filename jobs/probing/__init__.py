"""What a probe is asked for, the features it reads, and its report."""
