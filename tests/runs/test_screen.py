"""Passes over images are shown if they take long."""

import io

import pytest
from rich.console import Console

from fskd.runs import screen


class Clock:
    """Goes on by half a second at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(screen.time, "monotonic", made)
    return made


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.LineScreen(every=4.0).passing("teacher on the test images", 600) as seen:
        seen(100)
        assert not capsys.readouterr().err, "the first second is silent"
        for _ in range(5):
            seen(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("teacher on the test images: 200/600 images, ")
    assert 1 <= len(lines) <= 2


@pytest.mark.parametrize("training", [False, True])
def test_bars(training: bool) -> None:
    bars = screen.BarScreen()
    bars.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    if training:
        bars.begin("student", 10, 0)
    with bars.passing("teacher on the training images", 40) as seen:
        for _ in range(4):
            seen(10)
    if training:
        bars.step({"step": 10, "phase": "main", "lr": 0.1, "ce": 1.0}, 10, 64)
        bars.end()
    shown = bars.console.file.getvalue()  # type: ignore[attr-defined]
    assert "teacher on the training images" in shown
    assert ("student" in shown) == training


def test_nothing_is_shown_of_a_short_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen.time, "monotonic", lambda: 0.0)
    bars = screen.BarScreen()
    for shown in (screen.LineScreen(), bars, screen.Screen()):
        with shown.passing("student on the test images", 20) as seen:
            seen(10)
            seen(10)
    assert capsys.readouterr().err == ""
