"""A sweep makes what single runs make, skips, records failures, and shares work with others."""

import itertools
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sweeps import end_state, protocol, start

from fskd.config import Runtime
from fskd.engines.base import Outcome, Task
from fskd.engines.drive import carry_through
from fskd.engines.ledger import Ledger
from fskd.engines.local import local_pool
from fskd.report import main as report
from fskd.resolve import resolve
from fskd.results.evidence import gather
from fskd.results.names import load_names
from fskd.results.store import Result, RunDir
from fskd.sweep import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the command in this process, with two workers."""

    def call(file: Path, out: Path, *options: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(file), "--out", str(out), "--workers", "2", "--no-report", *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_makes_what_single_runs_make(sweep: Command, command: Command, tmp_path: Path) -> None:
    file, ours, theirs = protocol(tmp_path), tmp_path / "sweep", tmp_path / "run"
    code, table, said = sweep(file, ours)
    assert code == 0, said
    assert "4 of 4 runs finished; 5 made now" in table
    assert "paired difference kdplus - ce" in table
    assert command(str(file), folder=theirs)[0] == 0
    assert end_state(ours) == end_state(theirs)
    assert load_names(ours, "small") == load_names(theirs, "small")
    times = {path: path.stat().st_mtime_ns for path in ours.glob("*/*")}
    code, table, _ = sweep(file, ours)
    assert (code, "0 made now" in table) == (0, True)
    assert times == {path: path.stat().st_mtime_ns for path in ours.glob("*/*")}


def test_dry_run_and_filters(sweep: Command, tmp_path: Path) -> None:
    file, out = protocol(tmp_path, fractions="[0.1, 0.2]"), tmp_path / "runs"
    code, plan, _ = sweep(file, out, "--dry-run")
    assert (code, out.exists()) == (0, False)
    assert plan.endswith("0 of 8 runs finished, 8 left, and 1 teacher to be trained first\n")
    assert plan.splitlines()[0].startswith("teacher: digits-cnn_small-ce-100pct")
    cases = {
        "arm=kdplus": 4,
        "method=ce": 4,
        "data.fraction=0.20": 4,
        "fraction=0.1,0.2": 8,
        "seed=1": 4,
        "data.sampler=stratified": 8,
    }
    for text, count in cases.items():
        code, plan, _ = sweep(file, out, "--dry-run", "--only", text)
        assert (code, f"0 of {count} runs" in plan) == (0, True), text
    code, plan, _ = sweep(file, out, "--dry-run", "--only", "arm=ce", "--only", "seed=0")
    assert [line.split(":")[0] for line in plan.splitlines()[:-1]] == ["ce", "ce"]
    code, plan, _ = sweep(file, out, "--dry-run", "--seeds", "1")
    assert "0 of 4 runs" in plan


def test_a_part_of_a_protocol_expects_all_of_it(sweep: Command, tmp_path: Path) -> None:
    file, out = protocol(tmp_path), tmp_path / "runs"
    code, _table, _ = sweep(file, out, "--only", "arm=ce")
    assert (code, len(end_state(out))) == (0, 2)
    assert sorted(load_names(out, "small").values()) == ["ce", "ce", "kdplus", "kdplus"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--only", "arm"], "--only"),
        (["--only", "arm=nosuch"], "ce, kdplus"),
        (["--engine", "slurm"], "--engine"),
        (["--address", "auto"], "--address"),
        (["--gpus-per-run", "2"], "--gpus-per-run"),
        (["--workers", "0"], "--workers"),
        (["--max-failures", "x"], "--max-failures"),
        (["--set", "runtime.devices=2"], "runtime.devices"),
        (["--set", "method.temperature=2"], "arm"),
        (["--nosuch"], "nosuch"),
        (["--device", "cuda:77"], "device"),
    ],
)
def test_mistakes(sweep: Command, tmp_path: Path, options: list[str], named: str) -> None:
    file = protocol(
        tmp_path, "{ce: {method: ce}, kdplus: {method: {name: kdplus, temperature: 3}}}"
    )
    code, _, said = sweep(file, tmp_path / "runs", *options)
    assert code == 2
    assert named in said
    assert len(said.splitlines()) == 1
    assert not list((tmp_path / "runs").glob("*/*"))


def test_a_failure_is_recorded_and_stops_nothing(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fragile_net.py").write_text(
        "from torch import nn\n"
        "class Fragile(nn.Module):\n"
        "    def __init__(self, num_classes, in_channels):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(64 * in_channels, num_classes)\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 2:\n"
        "            raise RuntimeError('it broke')\n"
        "        return self.head(x.flatten(1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arms = (
        "{lr: {method: kd, optim: {lr: 1.0e+30}}, ce: {method: ce},"
        " code: {method: ce, student: 'fragile_net:Fragile'}, kd: {method: kd}}"
    )
    file, out = protocol(tmp_path, arms, seeds=1), tmp_path / "runs"
    code, table, said = sweep(file, out)
    assert code == 1, said
    assert "2 of 4 runs finished" in table
    errors = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/failed.json")}
    (diverged,) = (e for name, e in errors.items() if "-kd-" in name)
    (broken,) = (e for name, e in errors.items() if "-ce-" in name)
    assert re.match(r"step \d+: the term", diverged["error"])
    assert broken["error"] == "RuntimeError: it broke"
    assert "RuntimeError: it broke" in said
    assert len(list(out.glob("*/result.json"))) == 3

    code, _, said = sweep(file, out)  # not tried again unless asked
    assert code == 1
    assert "--retry-failed" in said
    assert sweep(file, out, "--retry-failed")[0] == 1
    attempts = [json.loads(path.read_text())["attempt"] for path in out.glob("*/failed.json")]
    assert attempts == [2, 2]
    code, _, said = sweep(file, out, "--retry-failed", "--max-failures", "1", "--workers", "1")
    assert code == 1
    assert "stopped with 1 runs left" in said

    assert sweep(file, out, "--only", "arm=ce,kd")[0] == 0
    # The same run, once what stopped it is gone.
    (folder,) = (path.parent for path in out.glob("*-ce-10pct*/result.json"))
    before = RunDir(folder).load()
    RunDir(folder).clear()
    RunDir(folder).record_failure("the disk was full")
    assert sweep(file, out, "--only", "arm=ce")[0] == 1
    assert sweep(file, out, "--only", "arm=ce", "--retry-failed")[0] == 0
    again = RunDir(folder).load()
    assert before is not None
    assert again is not None
    assert (again.top1, RunDir(folder).failed.exists()) == (before.top1, False)


def test_the_report_knows_what_a_sweep_left(
    sweep: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = "{ce: {method: ce}, kd: {method: kd}, wild: {method: kd, optim: {lr: 1.0e+30}}}"
    file, out = protocol(tmp_path, arms, seeds=2), tmp_path / "runs"
    assert sweep(file, out, "--only", "arm=kd,wild")[0] == 1
    assert not (out / "report").exists()
    assert report([str(out)]) == 0
    assert "2 runs, 2 failed, 2 missing" in capsys.readouterr().out
    found = gather(out)
    assert found.protocols == ["small"]
    assert [trouble.what for trouble in found.missing] == ["ce", "ce"]
    for trouble in found.failed:
        failure = RunDir(out / trouble.run).failure()
        assert failure is not None
        assert trouble.what == f"{failure['error']} (attempt 1)"
        assert trouble.time == failure["time"]
    assert sorted(found.table["arm"][found.table["role"] == "student"]) == ["kd", "kd"]


def test_ends_with_a_report_of_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = protocol(tmp_path, seeds=1), tmp_path / "runs"
    options = [str(file), "--out", str(out), "--workers", "1"]
    assert main([*options, "--only", "arm=ce"]) == 0
    page = out / "report" / "small" / "index.html"
    assert f"report: {page}" in capsys.readouterr().out
    before = page.read_text()
    assert "kdplus" not in before
    times = page.stat().st_mtime_ns
    assert main([*options, "--only", "arm=ce"]) == 0  # nothing new, so it is not written again
    assert page.stat().st_mtime_ns == times
    assert main(options) == 0
    assert "kdplus" in page.read_text()


def test_without_teacher_its_students_fail(sweep: Command, tmp_path: Path) -> None:
    base = (
        "{data: {name: digits}, budget: {steps: 6},"
        " teacher: {budget: {steps: 20}, optim: {lr: 1.0e+30}}}"
    )
    file, out = protocol(tmp_path, base=base, seeds=1), tmp_path / "runs"
    code, table, said = sweep(file, out)
    assert code == 1
    assert "1 of 2 runs finished" in table
    assert "its teacher was not made" in said
    assert "failed: digits-cnn_small-ce-100pct" in said


def test_two_sweeps_share_the_work(tmp_path: Path, command: Command) -> None:
    file, out, alone = protocol(tmp_path, seeds=4), tmp_path / "both", tmp_path / "alone"
    options = [str(file), "--set", "budget.steps=60", "teacher.budget.steps=60"]
    own = ["--workers", "1", "--no-report", "--out", str(out)]
    sweeps = [start(*options, *own) for _ in range(2)]
    printed = [process.communicate(timeout=300) for process in sweeps]
    assert [process.returncode for process in sweeps] == [0, 0], printed
    made = [re.search(r"(\d+) of 8 runs finished; (\d+) made", text) for text, _ in printed]
    assert [found and found[1] for found in made] == ["8", "8"]
    assert sum(int(found[2]) for found in made if found) == 9
    assert command(*options, folder=alone)[0] == 0
    assert end_state(out) == end_state(alone)


def test_interrupted_gracefully(tmp_path: Path) -> None:
    file, out = protocol(tmp_path, seeds=20), tmp_path / "runs"
    options = ["--set", "budget.steps=100", "--workers", "1", "--out", str(out)]
    process = start(str(file), *options)
    while not list(out.glob("*/result.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _printed, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    # What was running was finished; nothing is half-made.
    assert all((path / "result.json").exists() for path in out.iterdir() if path.is_dir())
    assert len(list(out.glob("*/result.json"))) < 41


class Pretended:
    """An engine with a script of outcomes; KeyboardInterrupt where the script says so."""

    def __init__(self, script: list[str], slots: int = 2) -> None:
        self.script, self.slots = script, slots
        self.going: list[Task] = []
        self.started: list[str] = []

    def start(self, task: Task) -> None:
        assert len(self.going) < self.slots
        self.going.append(task)
        self.started.append(task.key)

    def wait(self, timeout: float) -> list[tuple[Task, Outcome]]:
        kind = self.script.pop(0) if self.script else "made"
        if kind == "interrupt":
            signal.raise_signal(signal.SIGINT)
            return []
        if not self.going:
            return []
        result = RESULT if kind == "made" else None
        return [(self.going.pop(0), Outcome(kind, result, "why"))]  # type: ignore[arg-type]

    def close(self) -> None:
        self.going.clear()


RESULT = Result("k", {}, 1, 10, "", "", "", 0.5, 1.0, 0.1, 0.5, 1, 1.0, 64, 0)


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[..., Ledger]:
    """Makes a ledger of tasks that need the given keys."""

    def make(*needs: str | None, tries: int = 3) -> Ledger:
        config = resolve({"method": "ce"})
        several = [() if need is None else (need,) for need in needs]
        tasks = {str(i): Task("arm", config, str(i), own) for i, own in enumerate(several)}
        return Ledger(tmp_path, tasks, dict(tasks), tries=tries)

    return make


def through(book: Ledger, engine: Pretended, limit: int | None = None) -> bool:
    return carry_through(book, engine, lambda *_: None, lambda _: None, limit)


def test_ledger_waits_for_teachers(ledger: Callable[..., Ledger]) -> None:
    book, engine = ledger("2", None, None), Pretended([])
    assert through(book, engine)
    assert engine.started == ["1", "2", "0"]
    assert (book.made, len(book.results), book.waiting) == (3, 3, {})


def test_ledger_starts_lost_runs_again_but_not_for_ever(ledger: Callable[..., Ledger]) -> None:
    book, engine = ledger(None, None, tries=3), Pretended(["lost", "lost", "lost"], slots=1)
    assert through(book, engine)
    assert engine.started == ["0", "0", "0", "1"]
    assert book.failed == {"0": "why 3 times"}
    failure = RunDir(book.out / book.tasks["0"].folder).failure()
    assert failure is not None
    assert (failure["error"], failure["attempt"]) == ("why 3 times", 1)
    book, engine = ledger(None, tries=3), Pretended(["lost", "lost"])
    assert through(book, engine)
    assert not book.failed


def test_ledger_comes_back_to_busy_runs(
    ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 10)
    book, engine = ledger(None, None, None), Pretended(["busy"], slots=1)
    assert through(book, engine)
    assert engine.started == ["0", "1", "2", "0"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, also where a shell in the background has switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ledger_stops_when_asked(ledger: Callable[..., Ledger]) -> None:
    book, engine = ledger(*[None] * 5), Pretended(["interrupt"])
    assert not through(book, engine)
    assert (len(engine.started), len(book.results), len(book.waiting)) == (2, 2, 3)
    with pytest.raises(KeyboardInterrupt):
        through(ledger(*[None] * 5), Pretended(["interrupt", "interrupt"]))
    book, engine = ledger(*[None] * 5), Pretended(["failed"], slots=1)
    assert through(book, engine, 1)
    assert (engine.started, len(book.waiting)) == (["0"], 4)


def test_time_left_is_by_arm(ledger: Callable[..., Ledger]) -> None:
    book = ledger(None, None, None)
    assert book.seconds_left(2) is None
    book.seconds = {"arm": [1.0, 3.0], "other": [100.0]}
    assert book.seconds_left(2) == pytest.approx(3.0)


def test_workers_are_spread_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def devices(share: float, workers: int | None = None, device: str = "auto") -> list[str]:
        pool = local_pool(Runtime(device=device), workers, share)
        return [worker.place.runtime.device for worker in pool._workers]

    assert devices(1.0) == ["cuda:0", "cuda:1"]
    assert devices(0.5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert devices(0.1, workers=3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices(0.25, device="cuda:1") == ["cuda:1"] * 4
    assert devices(1.0, workers=3, device="cpu") == ["cpu"] * 3
