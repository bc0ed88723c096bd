"""The step: the loop, what goes into it, and what happens beside its arithmetic."""
