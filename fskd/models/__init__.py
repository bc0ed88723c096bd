"""Networks by name, their taps and their weights on disk."""
