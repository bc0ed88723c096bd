"""Results of finished runs; imports no torch, so a report opens at once."""

from fskd.results.store import Result, RunDir

__all__ = ["Result", "RunDir"]
