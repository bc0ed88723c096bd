"""Data sets: one file each, found by the name under which its reader is registered."""
