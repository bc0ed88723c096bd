"""Run directories: the only record of a run, readable with a text editor, never half-written.

A directory holds ``config.yaml``, ``metrics.jsonl`` (appended while running), ``state.ckpt`` (until
the end), ``student.safetensors`` and, written last, ``result.json``: its presence means finished.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fskd.errors import FskdError, SettingError

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """What one run found. Accuracies and shares are in [0, 1], NLL is in nats.

    Attributes:
        key: Hash of everything that determines the run.
        config: The resolved settings.
        n_train: Training examples of the student.
        num_classes: K.
        data_sha256: Fingerprint of the training images and labels.
        test_sha256: Fingerprint of the test images and labels.
        split_sha256: Hash of the ranking that the subset is a prefix of.
        split_file: Name of the file the ranking was read from, or ``computed``.
        split_queries: Rows that went through a teacher to make the ranking, whenever that was.
        top1: Accuracy on the test split after the last step.
        top5: Top-5 accuracy; None with ten classes or fewer.
        nll: Mean negative log-likelihood.
        ece: Expected calibration error, 15 bins.
        val_top1: Accuracy on the validation part; None if none was carved.
        train_top1: Accuracy on the (first 4,096) training examples, without augmentation.
        teacher: Name, top1, n_train and key of the teacher; None without one. Of several these are
            joined by ``+``, and ``members`` has each; of a black box or a table there is no top1,
            nor are there the next four.
        agreement: Share of test images on which student and teacher predict the same class.
        tv_train: Mean total variation between student and teacher on the training points.
        tv_test: The same on the test points.
        tv_paths: The same on random points between pairs of training points.
        steps: Optimiser updates.
        epochs: Student rows divided by ``n_train``.
        student_rows: Rows that went forward and backward through each student.
        teacher_queries: Rows that went through the teacher during training.
        phases: Steps of each phase.
        final_loss: Last logged value of every term.
        peers_top1: Test accuracy of every further student.
        measured: Of other networks and of logits that methods make of several (an average of the
            student, an ensemble): ``top1``, ``nll``, ``ece`` and, with many classes, ``top5``.
        procedure: What a procedure tells of itself, such as the blocks that it took out.
        searches: What the generator's searches found, a record each; with ``episode`` if episodic.
        n_unlabelled: Images without labels that the student was shown.
        episodes: Of an episodic run: ``n``, ``top1`` of each, their sample ``std``, and
            ``interval``, half the width of the mean's 95 % t-interval (None for one episode).
            All other numbers are then means over episodes, but seconds are sums.
        classes: Names of the classes, in the order of the networks' outputs.
        files: Of ``train`` and ``test``: how many ``files`` were read, how many were ``left_out``
            by kind, which were ``unreadable``, and the ``test_share`` that was set aside.
        notes: What was changed of networks and weights before they were used.
        doubts: What is probably wrong with data or teacher.
        seconds: Wall-clock time of each part.
        versions: Of Python, fskd and the libraries that matter.
        device: Where it ran.
        processes: How many processes shared a batch; with BatchNorm each normalises its own rows.
        precision: Of the arithmetic.
        path: The run directory.
    """

    key: str
    config: dict[str, Any]
    n_train: int
    num_classes: int
    data_sha256: str
    test_sha256: str
    split_sha256: str
    top1: float
    nll: float
    ece: float
    train_top1: float
    steps: int
    epochs: float
    student_rows: int
    teacher_queries: int
    split_file: str = "computed"
    split_queries: int = 0
    top5: float | None = None
    val_top1: float | None = None
    teacher: dict[str, Any] | None = None
    agreement: float | None = None
    tv_train: float | None = None
    tv_test: float | None = None
    tv_paths: float | None = None
    phases: dict[str, int] = field(default_factory=dict)
    final_loss: dict[str, float] = field(default_factory=dict)
    episodes: dict[str, Any] | None = None
    peers_top1: list[float] = field(default_factory=list)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    procedure: dict[str, Any] = field(default_factory=dict)
    searches: list[dict[str, Any]] = field(default_factory=list)
    n_unlabelled: int = 0
    classes: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    processes: int = 1
    precision: str = "32-true"
    path: str = ""
    format: int = FORMAT

    @classmethod
    def from_json(cls, text: str, path: str = "") -> "Result":
        """Reads what ``to_json`` wrote; keys of newer versions are ignored."""
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        known = {f.name for f in fields(cls)}
        return cls(**{**{k: v for k, v in raw.items() if k in known}, "path": path})

    def to_json(self) -> str:
        """Readable JSON, without the path (a run directory may be moved)."""
        return (
            json.dumps(
                {k: v for k, v in asdict(self).items() if k != "path"}, indent=2, allow_nan=False
            )
            + "\n"
        )

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config["method"]["name"])

    @property
    def seed(self) -> int:
        """Run seed."""
        return int(self.config["seed"])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that replaces ``path`` when the block ends well.

    Readers see the old file or the new one, never part of it, whenever the process dies.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file at one stroke."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(folder: Path, setting: str = "out") -> None:
    """SettingError unless files can be made in ``folder``, which is created if absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingError(setting, folder, f"a folder that can be written ({reason})") from None


@dataclass(frozen=True)
class RunDir:
    """One run's folder, ``<out>/<label>-<key>``."""

    path: Path

    @property
    def state(self) -> Path:
        """Training state, present while the run is unfinished."""
        return self.path / "state.ckpt"

    @property
    def student(self) -> Path:
        """Weights of the (first) student."""
        return self.weights("student")

    def weights(self, name: str) -> Path:
        """Of a network by name, or of the methods (``method``)."""
        return self.path / f"{name}.safetensors"

    @property
    def test_logits(self) -> Path:
        """Of a teacher: what it says of the test images, for its students."""
        return self.path / "test_logits.safetensors"

    @property
    def answers(self) -> Path:
        """What a black box said of the training images, while the run is unfinished."""
        return self.path / "answers.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def episodes(self) -> Path:
        """One JSON object for each finished episode of an episodic run."""
        return self.path / "episodes.jsonl"

    @property
    def result(self) -> Path:
        """Present if and only if the run is finished."""
        return self.path / "result.json"

    @property
    def failed(self) -> Path:
        """What went wrong when a sweep last made the run; gone once it is finished."""
        return self.path / "failed.json"

    def record_failure(self, error: str) -> None:
        """Writes down a failure: one line, the time (UTC) and the number of the attempt."""
        record = {
            "error": error,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempt": 1 + (self.failure() or {}).get("attempt", 0),
        }
        write_text(self.failed, json.dumps(record, indent=2) + "\n")

    def failure(self) -> dict[str, Any] | None:
        """What ``record_failure`` wrote, or None; a damaged file counts as none."""
        try:
            record = json.loads(self.failed.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        known = isinstance(record, dict) and isinstance(record.get("error"), str)
        return record if known and isinstance(record.get("attempt"), int) else None

    def load(self) -> Result | None:
        """The result of a finished run."""
        if not self.result.exists():
            return None
        try:
            return Result.from_json(self.result.read_text(encoding="utf-8"), str(self.path))
        except (ValueError, TypeError, OSError) as error:
            raise FskdError(
                f"{self.result}: not a result file ({error}); delete {self.path} to make it anew"
            ) from None

    def clear(self) -> None:
        """Removes all that a run leaves, the result first, so that it counts as unfinished."""
        for path in (self.result, self.failed, self.state, self.metrics, self.episodes):
            path.unlink(missing_ok=True)
        for path in self.path.glob("*.safetensors"):
            path.unlink()
        self.drop_temporaries()
        self.clean()

    def clean(self) -> None:
        """Removes what is needed only while the run goes on.

        Also of a finished run, whose process may have been killed before it came to this.
        """
        self.state.unlink(missing_ok=True)
        self.answers.unlink(missing_ok=True)
        for path in self.path.glob("episode*/"):
            shutil.rmtree(path, ignore_errors=True)

    def drop_temporaries(self) -> None:
        """Removes what killed processes were writing; only for who holds the run's lock."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)


class MetricsLog:
    """Appends JSON lines; a resumed run first drops the lines after its saved state."""

    def __init__(self, path: Path | None, resume_step: int = 0) -> None:
        self.path = path
        if path is not None and path.exists():
            write_text(path, "".join(_kept_lines(path, resume_step)))

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")


def _kept_lines(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                yield line + "\n"
        except (ValueError, KeyError, TypeError):
            return  # a line cut off by a kill; nothing after it counts
