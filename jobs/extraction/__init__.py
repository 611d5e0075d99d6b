"""What an extraction is asked for, its plan, and the work on one part."""
