"""Registries: a decorator registers, a name finds, a misspelt name lists what is known."""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from fskd.errors import SettingError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named parts of one kind, discovered in one package or several.

    A module of a package registers its part with the decorator; writing that one file is all it
    takes to add a part.

    Args:
        kind: What the parts are, as used in messages (``method``).
        packages: Their modules are imported on the first look-up (``fskd.methods``).
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind, self.packages = kind, packages
        self._parts: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function under ``name``.

        A module that is loaded again may replace its own part.

        Raises:
            ValueError: If another part has the name.
        """

        def add(part: T) -> T:
            known = self._parts.get(name)
            if known is not None and _origin(known) != _origin(part):
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._parts[name] = part
            return part

        return add

    def get(self, name: str) -> T:
        """The part registered under ``name``; SettingError with the nearest name otherwise."""
        self._discover()
        if name not in self._parts:
            raise SettingError(self.kind, f"'{name}'", suggest(name, self._parts))
        return self._parts[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._parts)

    def _discover(self) -> None:
        if self._discovered:
            return
        for name in self.packages:
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(package.__path__, name + "."):
                importlib.import_module(module.name)
        self._discovered = True


def describe(*packages: str) -> list[tuple[str, str]]:
    """(name, first line of the docstring) of every part of some packages, sorted by name.

    They are read from the source, since a list needs neither the parts nor torch: a part is a
    class or function whose decorator is called with its name.

    Example:
        >>> dict(describe("fskd.generators"))["cutmix"]
        'Pastes a random box of one sample into another (region mix).'
    """
    found: list[tuple[str, str]] = []
    for file in (file for package in packages for file in _folder(package).glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                found += [(name, line) for name in map(_named, node.decorator_list) if name]
    return sorted(found)


def _folder(package: str) -> Path:
    # Only the outermost package is imported: the inner ones may import torch.
    outer, *inner = package.split(".")
    spec = find_spec(outer)
    places = None if spec is None else spec.submodule_search_locations
    if not places:
        raise ModuleNotFoundError(f"there is no package {outer}")
    return Path(places[0]).joinpath(*inner)


def _named(decorator: ast.expr) -> str | None:
    """The name that a decorator registers; None if it registers nothing."""
    match decorator:
        case ast.Call(args=[ast.Constant(value=str(name)), *_]):
            return name
    return None


def _origin(part: object) -> tuple[str, str]:
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", "")
