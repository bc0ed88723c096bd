"""Training: the loop, what goes into it, and what is measured and written at its end."""
