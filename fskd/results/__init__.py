"""Results of finished runs; imports no torch, so a report opens at once.

``load`` and ``read_csv_results`` need pandas and are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from fskd.results.store import Result, RunDir

if TYPE_CHECKING:
    from fskd.results.external import read_csv_results
    from fskd.results.loading import load

__all__ = ["Result", "RunDir", "load", "read_csv_results"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from fskd.results.loading import load

        return load
    if name == "read_csv_results":
        from fskd.results.external import read_csv_results

        return read_csv_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
