"""What a start imports. Seconds differ between machines; modules do not.

A library that takes a tenth of a second or more is imported when it is used, and not because a file
that could use it is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Imported as a whole: what stands at the top of sys.modules.
HEAVY = {
    "IPython", "lightning_fabric", "matplotlib", "pandas", "pyarrow", "ray", "scipy", "sklearn",
    "sympy", "tensorboard", "timm", "torchvision",
}  # fmt: skip
# Parts of torch that its own import leaves out, a second or more.
INSIDE_TORCH = {"torch._dynamo", "torch._inductor"}

# With a teacher that is sound: one that is not makes fskd look for the cause.
TINY = ["--steps", "3", "--fraction", "0.1", "--quiet", "--set", "teacher.budget.steps=150"]


def modules(code: str) -> set[str]:
    """Names of all modules that a fresh process has imported when it has done this."""
    code = f"import json, sys\n{code}\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return set(json.loads(made.stdout.splitlines()[-1]))


def calls(program: str, *options: str) -> str:
    return f"from {program} import main\nassert main({list(options)!r}) == 0"


@pytest.mark.parametrize(
    "code",
    [
        "import fskd",
        "import fskd.results",
        calls("fskd.run", "--list"),
        calls("fskd.run", "--list", "models"),
        calls("fskd.run", "--help"),
        calls("fskd.sweep", "--help"),
    ],
    ids=["fskd", "results", "list", "list_kind", "help", "sweep_help"],
)
def test_what_computes_nothing_imports_no_torch(code: str) -> None:
    found = modules(code)
    assert "fskd" in found
    assert not found & {*HEAVY, "torch"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A run with its teacher, and what making them imported."""
    out = tmp_path_factory.mktemp("runs")
    return out, modules(calls("fskd.run", *TINY, "--out", str(out)))


def test_training_imports_what_it_uses(made: tuple[Path, set[str]]) -> None:
    _, found = made
    assert not found & (HEAVY | INSIDE_TORCH)
    assert "fskd.runs.runner" in found


def test_a_finished_run_is_found_without_what_trains(made: tuple[Path, set[str]]) -> None:
    found = modules(calls("fskd.run", *TINY, "--out", str(made[0])))
    assert not found & (HEAVY | INSIDE_TORCH)
    assert not found & {"fskd.runs.runner", "fskd.train.loop", "rich.progress"}


def test_a_dry_run_imports_no_more(tmp_path: Path) -> None:
    protocol = Path(__file__).parents[1] / "protocols" / "smoke.yaml"
    found = modules(calls("fskd.sweep", str(protocol), "--dry-run", "--out", str(tmp_path)))
    assert not found & (HEAVY | INSIDE_TORCH)
    assert "fskd.runs.runner" not in found
