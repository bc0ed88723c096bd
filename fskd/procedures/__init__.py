"""Methods that are more than a loss in one loop, one file each; see ``base``."""
