"""What every command shares: arguments, settings, messages, progress, checks before the work."""
