"""Trackers: TensorBoard, MLflow and Weights & Biases get what the run directory gets.

They are optional and off by default (``runtime.track``). The run directory stays the record and the
report needs no tracker. Their libraries are imported on first use. A tracker that fails, at any
point, says one line and is switched off; the run goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fskd.config import RunConfig
from fskd.results.store import Result
from fskd.results.summary import flat_settings
from fskd.runs.prepare import Job

PROJECT = "fskd"
# What a result has beside the settings, and belongs to the summary of a run.
MEASURES = (
    "top1", "top5", "nll", "ece", "val_top1", "train_top1", "agreement", "tv_train", "tv_test",
    "tv_paths", "n_train", "steps", "student_rows", "teacher_queries",
)  # fmt: skip


class Tracker(Protocol):
    """What a tracker can do; a class of this kind is made with (name, folder, settings)."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Losses and learning rate after a step."""

    def finish(self, step: int, measures: Mapping[str, float]) -> None:
        """What the finished run found."""

    def close(self, status: str) -> None:
        """The end, ``finished`` or ``failed``."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
        self._writer.add_text("settings", f"    {name}\n{lines}", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"train/{key}", value, step)

    def finish(self, step: int, measures: Mapping[str, float]) -> None:
        for key, value in measures.items():
            self._writer.add_scalar(f"result/{key}", value, step)

    def close(self, status: str) -> None:
        self._writer.close()


class MLflow:
    """A run in the MLflow store that the environment names (``MLFLOW_TRACKING_URI``)."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str]) -> None:
        import mlflow  # type: ignore[import-not-found, unused-ignore]

        self._mlflow: Any = mlflow
        self._run = mlflow.start_run(run_name=name, tags={"project": PROJECT}, nested=True)
        mlflow.log_params({key: value[:500] for key, value in settings.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"train.{k}": v for k, v in values.items()}, step=step)

    def finish(self, step: int, measures: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"result.{k}": v for k, v in measures.items()}, step=step)

    def close(self, status: str) -> None:
        self._mlflow.end_run("FINISHED" if status == "finished" else "FAILED")


class WandB:
    """A run of Weights & Biases; the environment decides whether it is online."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, str]) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self._run: Any = wandb.init(
            project=PROJECT, name=name, dir=str(folder), config=dict(settings), reinit=True
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"train/{k}": v for k, v in values.items()}, step=step)

    def finish(self, step: int, measures: Mapping[str, float]) -> None:
        for key, value in measures.items():
            self._run.summary[f"result/{key}"] = value

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


TRACKERS: dict[str, Callable[[str, Path, Mapping[str, str]], Tracker]] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB,
}  # fmt: skip


class Tracks:
    """Several trackers, none of which can stop a run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._open = say, dict[str, Tracker]()

    def start(self, name: str, job_name: str, folder: Path, settings: Mapping[str, str]) -> None:
        """Opens a tracker."""

        def make() -> None:
            self._open[name] = TRACKERS[name](job_name, folder, settings)

        self._guarded(name, make)

    def log(self, record: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``; its numbers are tracked."""
        values = {key: value for key, value in record.items() if _is_number(value)}
        step = int(values.pop("step", 0))
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, values))  # type: ignore[misc]

    def finish(self, result: Result) -> None:
        """The measures of the finished run."""
        found = {name: getattr(result, name) for name in MEASURES}
        measures = {name: float(value) for name, value in found.items() if value is not None}
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.finish(result.steps, measures))  # type: ignore[misc]

    def __enter__(self) -> "Tracks":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Closes all trackers."""
        status = "finished" if kind is None else "failed"
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(status))  # type: ignore[misc]
        self._open.clear()

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        # Whatever a tracker raises (no network, no disk, a library that exits), training goes on.
        try:
            call()
        except (Exception, SystemExit) as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200]
            hint = "; pip install 'fskd[track]'" if isinstance(error, ImportError) else ""
            self._say(f"{name} is off for this run ({type(error).__name__}: {reason}{hint})")


def open_tracks(names: Sequence[str], job: Job, say: Callable[[str], None]) -> Tracks:
    """The trackers of a run, opened.

    Args:
        names: Which.
        job: The run.
        say: Gets one line about a tracker that fails.
    """
    tracks = Tracks(say)
    for name in dict.fromkeys(names):
        tracks.start(name, job.folder.path.name, job.folder.path, _settings(job.config))
    return tracks


def _settings(config: RunConfig) -> dict[str, str]:
    seeds = {"seed": str(config.seed), "split_seed": str(config.data.split_seed)}
    return {**dict(flat_settings(config.model_dump(mode="json"))), **seeds, "key": config.key()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
