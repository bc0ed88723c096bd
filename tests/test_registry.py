"""Registration by decorator, discovery by package, and messages for misspelt names."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fskd.data.datasets.base import datasets
from fskd.data.samplers.base import samplers
from fskd.errors import SettingError
from fskd.generators.base import generators
from fskd.methods.base import methods
from fskd.models.catalog import models
from fskd.registry import Registry, describe

Make = Callable[..., Registry[Any]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Writes a package of the given modules; each registers with ``toys``."""
    name = f"toys_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from fskd.registry import Registry\ntoys = Registry('toy', {name!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules: str) -> Registry[Any]:
        for module, body in modules.items():
            (folder / f"{module}.py").write_text(f"from {name} import toys\n{body}\n")
        return __import__(name).toys

    yield write
    for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[module]


BALL = '@toys.register("ball")\nclass Ball:\n    """Round.\n\n    Rolls.\n    """'
CUBE = '@toys.register("cube")\ndef cube():\n    pass'


def test_discovery(make: Make) -> None:
    """One file adds a part; it is imported on the first look-up, not before."""
    toys = make(one=BALL, two=CUBE)
    (package,) = toys.packages
    assert not any(module.startswith(f"{package}.") for module in sys.modules)
    assert toys.names() == ["ball", "cube"]
    assert toys.get("ball").__name__ == "Ball"
    assert describe(package) == [("ball", "Round."), ("cube", "")]


def test_unknown_name(make: Make) -> None:
    """The nearest name first, then all."""
    toys = make(one=BALL, two=CUBE)
    expected = r"toy: 'bal' is not accepted; expected 'ball' \(nearest\); known: ball, cube$"
    with pytest.raises(SettingError, match=expected):
        toys.get("bal")
    with pytest.raises(SettingError, match=r"expected one of the known: ball, cube$"):
        toys.get("zzzz")


def test_registered_twice(make: Make) -> None:
    """Two files of one name."""
    toys = make(one=BALL, two=BALL)
    with pytest.raises(ValueError, match="toy 'ball' is registered twice"):
        toys.names()


def test_registered_twice_in_one_file(make: Make) -> None:
    """A name that was copied along with the class."""
    toys = make(one=BALL + '\n@toys.register("ball")\nclass Other:\n    pass')
    with pytest.raises(ValueError, match="toy 'ball' is registered twice"):
        toys.names()


def test_loaded_again() -> None:
    """A module (or a notebook's cell) that runs again replaces its part."""
    toys: Registry[Any] = Registry("toy", "fskd.generators")

    def define() -> type:
        @toys.register("ball")
        class Ball:
            pass

        return Ball

    first, second = define(), define()
    assert toys.get("ball") is second is not first


def test_broken_module(make: Make) -> None:
    """The error of a module is shown each time, not hidden by the first look-up."""
    toys = make(one=BALL, two="raise RuntimeError('broken')")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            toys.get("ball")


@pytest.mark.parametrize(
    ("registry", "known"),
    [
        (methods, {"kd", "kdplus"}),
        (generators, {"mixup", "cutmix"}),
        (samplers, {"uniform"}),
        (datasets, {"digits"}),
        (models, {"cnn_tiny"}),
    ],
)
def test_own_registries(registry: Registry[Any], known: set[str]) -> None:
    """The parts are found, named in lower case and described in a line."""
    assert known <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    docs = {name: (registry.get(name).__doc__ or "").strip() for name in registry.names()}
    lines = {name: doc.partition("\n")[0] for name, doc in docs.items()}
    assert describe(*registry.packages) == list(lines.items())
    for name, line in lines.items():
        assert name == name.lower()
        assert line.endswith(".")
    for name in known:
        with pytest.raises(SettingError, match=f"'{name}' \\(nearest\\)"):
            registry.get(name + "x")
