"""Runs as Ray tasks, on one machine or a cluster whose nodes share the folder of results.

Ray starts the processes and keeps them between tasks; lost tasks come back to the sweep, which
starts them again, so that both engines have the same rules. The only file that imports ray.
"""

import contextlib
import logging
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fskd.engines.base import Outcome, Place, Task
from fskd.errors import SettingError

if TYPE_CHECKING:
    from fskd.config import Runtime


class RayEngine:
    """Ray tasks with a share of a GPU, or one CPU core, each.

    Args:
        runtime: Device and folders; the folder must be the same on every node.
        address: Of a running cluster; None starts Ray here (or joins the one in ``RAY_ADDRESS``).
        gpus: GPUs a run, such as 0.25, unless it is on the CPU.
        most: Most runs at once; None for as many as the cluster holds.
        mirror: Where finished runs are copied, if anywhere; nodes then need no common folder.

    Raises:
        SettingError: If ray is not installed or the cluster is not there.
    """

    def __init__(
        self,
        runtime: "Runtime",
        address: str | None,
        gpus: float,
        most: int | None,
        mirror: str | None = None,
    ) -> None:
        if find_spec("ray") is None:
            accepted = "local, since ray is not installed: pip install 'fskd[sweep]'"
            raise SettingError("--engine", "'ray'", accepted)
        ray: Any = import_module("ray")

        self._ray, self._most = ray, most
        self._mine = not ray.is_initialized()
        if self._mine:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                given = f"a Ray cluster that answers ({reason})"
                raise SettingError("--address", address, given) from None
        absolute = str(Path(runtime.out).expanduser().absolute())
        self._place = Place(runtime.model_copy(update={"out": absolute}), 1, mirror)
        self._gpus = gpus if self._on_gpus(runtime.device) else 0.0
        # No retries of Ray's own: the sweep counts them.
        options = {"num_cpus": 1, "num_gpus": self._gpus, "max_retries": 0}
        self._remote: Any = ray.remote(**options)(_carry_out)
        self._tasks: dict[Any, Task] = {}

    def _on_gpus(self, device: str) -> bool:
        """Whether runs take GPUs of the cluster; SettingError if they must and it has none."""
        there = "GPU" in self._ray.cluster_resources()
        if not there and device.startswith("cuda"):
            raise SettingError("device", f"'{device}'", "cpu, since the Ray cluster has no GPU")
        return there and device != "cpu"

    @property
    def slots(self) -> int:
        """Runs that the living nodes hold, at least one."""
        resources = self._ray.cluster_resources()
        name, each = ("GPU", self._gpus) if self._gpus else ("CPU", 1)
        held = max(int(resources.get(name, 0) / each + 1e-6), 1)
        return held if self._most is None else min(held, self._most)

    def start(self, task: Task) -> None:
        """Submits a task."""
        self._tasks[self._remote.remote(task, self._place)] = task

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """What has ended since."""
        if not self._tasks:
            time.sleep(timeout)
            return []
        refs = list(self._tasks)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=timeout)
        return [(self._tasks.pop(ref), self._get(ref)) for ref in ready]

    def _get(self, ref: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:  # a process or its node died
            return Outcome("lost", error=f"its process died ({type(error).__name__})")
        return outcome

    def close(self) -> None:
        """Cancels what goes on; a cluster that was there before stays."""
        for ref in self._tasks:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)
        self._tasks.clear()
        if self._mine:
            self._ray.shutdown()


def _carry_out(task: Task, place: Place) -> Outcome:
    from fskd.engines.work import carry_out

    return carry_out(task, place)
