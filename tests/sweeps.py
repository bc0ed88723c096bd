"""What the tests of sweeps share: a small protocol and the comparison of two folders of runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = "{data: {name: digits}, budget: {steps: 6}, teacher: {budget: {steps: 20}}}"


def protocol(
    folder: Path,
    arms: str = "{ce: {method: ce}, kdplus: {method: kdplus}}",
    base: str = TINY,
    fractions: str = "[0.1]",
    seeds: int = 2,
) -> Path:
    """Writes a protocol file."""
    file = folder / "small.yaml"
    file.write_text(
        f"base: {base}\naxes: {{fraction: {fractions}}}\narms: {arms}\nseeds: {seeds}\n"
    )
    return file


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*options: str, module: str = "fskd.sweep") -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *options],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where tests run in the background, Ctrl-C is ignored and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end_state(out: Path) -> dict[str, dict[str, Any]]:
    """All files of all runs; of the results what does not depend on the clock or the place."""
    found = {}
    for folder in out.iterdir():
        if not folder.is_dir():
            continue
        files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert "result.json" in files, folder
        result = json.loads(files["result.json"])
        del result["seconds"]
        files["result.json"] = result
        found[folder.name] = files
    return found
