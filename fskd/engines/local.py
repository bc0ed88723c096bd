"""A pool of processes on this machine that outlives the death of any of them.

Every worker has a pipe of its own, so that a killed one takes nothing with it but the run it was
making; ``concurrent.futures`` would give up the whole pool. Workers are forked from a server that
has imported everything (and has started no thread and no CUDA), so that a new one is there at once;
where there is no such server they are spawned. A worker ends with the process that started it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from fskd.engines.base import Outcome, Place, Task

if TYPE_CHECKING:
    from fskd.config import Runtime

FORKING = "forkserver" in multiprocessing.get_all_start_methods()
LOST = Outcome("lost", error="its process died")
STARTS = 5  # of a process, before it is an error that there is none


def cores() -> int:
    """CPU cores that this process may use, limits of its container included."""
    from joblib import cpu_count

    return int(cpu_count())


def preload() -> None:
    """Starts the server from which workers are forked; its imports go on beside the caller's."""
    if not FORKING:
        return
    _context().set_forkserver_preload(["fskd.engines.work", "fskd.run"])
    # Ctrl-C reaches all processes of a terminal, but only the sweep itself decides what follows.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _context() -> Any:
    return multiprocessing.get_context("forkserver" if FORKING else "spawn")


def local_pool(
    runtime: "Runtime", workers: int | None, gpus_per_run: float, mirror: str | None = None
) -> "LocalPool":
    """Workers for all cores, or for all GPUs.

    Args:
        runtime: Device and folders.
        workers: How many; None for one a core, or as many as the GPUs hold.
        gpus_per_run: Share of a GPU, in (0, 1].
        mirror: Where finished runs are copied, if anywhere.

    Raises:
        SettingError: If the device is not there.
    """
    import torch

    from fskd.train.devices import find_devices

    if find_devices(runtime)[0] == "cpu":
        devices = ["cpu"] * (workers or cores())
    else:
        one = ":" in runtime.device
        gpus = [runtime.device] if one else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        # In turn over the GPUs, as many on each as the share allows.
        devices = (gpus * int(1 / gpus_per_run + 1e-6))[:workers]
    # OMP_NUM_THREADS, if set, limits the threads as it does everywhere.
    threads = max(min(cores() // len(devices), torch.get_num_threads()), 1)
    runtimes = [runtime.model_copy(update={"device": device}) for device in devices]
    return LocalPool([Place(own, threads, mirror) for own in runtimes])


class _Worker:
    """One process, started when it is first needed and again when it was lost."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.task: Task | None = None
        self.process: BaseProcess | None = None
        self.pipe: Any = None

    def start(self, task: Task) -> None:
        """Hands over a task."""
        if self.process is None or not self.process.is_alive():
            self.stop()
            self._begin()
        self.task = task
        with contextlib.suppress(OSError):  # it has just died, which ``collect`` will find
            self.pipe.send(task)

    def _begin(self) -> None:
        for left in reversed(range(STARTS)):
            pipe, theirs = multiprocessing.Pipe()
            # Not a daemon, which could have no processes that decode images.
            process = _context().Process(target=_serve, args=(theirs, self.place))
            try:
                process.start()
            except (OSError, EOFError):  # the server was just killed; the next start finds out
                pipe.close()
                if not left:
                    raise
                time.sleep(0.2)
            else:
                self.pipe, self.process = pipe, process
                return
            finally:
                theirs.close()

    def collect(self) -> tuple[Task, Outcome]:
        """What became of the task, once pipe or process have something to say."""
        task, self.task = self.task, None
        assert task is not None  # noqa: S101
        try:
            outcome: Outcome = self.pipe.recv() if self.pipe.poll() else LOST
        except (EOFError, OSError):
            outcome = LOST
        if outcome.spoiled or outcome.kind == "lost":
            self.stop()
        return task, outcome

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process.close()
            self.pipe.close()
        self.process = self.task = None


class LocalPool:
    """Processes on this machine.

    Args:
        places: One for every worker; they differ in their devices.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._workers = [_Worker(place) for place in places]

    @property
    def slots(self) -> int:
        """Number of workers."""
        return len(self._workers)

    def start(self, task: Task) -> None:
        """Hands a task to an idle worker."""
        next(worker for worker in self._workers if worker.task is None).start(task)

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """What has ended since, lost workers included."""
        owners: dict[Any, _Worker] = {}
        for worker in self._workers:
            if worker.task is not None and worker.process is not None:
                owners |= {worker.pipe: worker, worker.process.sentinel: worker}
        ready = connection.wait(list(owners), timeout)
        return [worker.collect() for worker in dict.fromkeys(owners[item] for item in ready)]

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.stop()


def _serve(pipe: Any, place: Place) -> None:
    """A worker's life: tasks from the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from fskd.engines.work import carry_out

    while True:
        try:
            outcome = carry_out(pipe.recv(), place)
            pipe.send(outcome)
        except (EOFError, OSError):
            return
        if outcome.spoiled:
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
