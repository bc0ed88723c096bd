"""Registries: a decorator registers, a name finds, a misspelt name lists what is known."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fskd.errors import SettingError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named parts of one kind, discovered in one package.

    A module of the package registers its part with the decorator; writing that one file is all it
    takes to add a part.

    Args:
        kind: What the parts are, as used in messages (``method``).
        package: Package whose modules are imported on the first look-up (``fskd.methods``).
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
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

    def describe(self) -> Iterator[tuple[str, str]]:
        """(name, first line of the docstring) of every part."""
        for name in self.names():
            doc = (self._parts[name].__doc__ or "").strip()
            yield name, doc.splitlines()[0] if doc else ""

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, self.package + "."):
            importlib.import_module(module.name)
        self._discovered = True


def _origin(part: object) -> tuple[str, str]:
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", "")
