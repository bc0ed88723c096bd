"""Hashes of what a setting names but does not determine: weights, code, files."""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fskd.errors import SettingError
from fskd.models.catalog import LIBRARIES

PLAIN = (bool, int, float, str, type(None))
KNOWN = ("torch", "fskd", "builtins")  # whose code is not a user's


def weights_hash(module: nn.Module, trains: bool = False) -> str:
    """sha256 over what a network computes, as far as that can be seen.

    That is its description, its weights and buffers, the plain values that its modules keep, and
    the code of their classes.

    Args:
        module: The network.
        trains: Whether it will be trained; which of its parameters are frozen then counts.
    """
    digest = hashlib.sha256(repr(module).encode())
    # Buffers that are not saved are used all the same.
    for name, value in {**dict(module.named_buffers()), **module.state_dict()}.items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    for name, part in module.named_modules():
        digest.update(repr((name, _plain_values(part))).encode())
    for kind in dict.fromkeys(map(type, module.modules())):
        digest.update(_code(kind).encode())
    if trains:
        frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
        digest.update(repr(frozen).encode())
    return digest.hexdigest()


def _bytes(value: object) -> bytes:
    if not isinstance(value, Tensor):  # an extra state
        return repr(value).encode()
    plain = value.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()  # NumPy knows no bfloat16


def _plain_values(module: nn.Module) -> list[tuple[str, object]]:
    """Numbers, texts and functions that a module keeps; its mode is not that of its use."""
    kept = {n: v for n, v in vars(module).items() if n != "training" and not n.startswith("_")}
    kept |= {name: _named(value) for name, value in kept.items() if inspect.isroutine(value)}
    return sorted((name, value) for name, value in kept.items() if _is_plain(value))


def _named(function: Any) -> str:
    plain = getattr(function, "__func__", function)
    return f"{plain.__module__}.{plain.__qualname__} {_source(plain)}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


@lru_cache(maxsize=1024)
def _code(kind: type) -> str:
    """The source of a class and of those it is made from, but for torch's and ours."""
    classes = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in KNOWN]
    functions = [f for one in classes for f in vars(one).values() if inspect.isfunction(f)]
    return "".join(map(_source, functions))


def _source(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):  # typed at a prompt
        return ""


def held_hash(function: object) -> str | None:
    """sha256 over numbers, texts, tensors and networks that a function holds; None without any.

    These are bound by ``partial``, closed over, defaults, or attributes of an object that is
    called; of its globals, as in a notebook, the tensors and networks.
    """
    found = [part for value in _held(function) if (part := _told(value)) is not None]
    return hashlib.sha256(repr(found).encode()).hexdigest() if found else None


def _told(value: object) -> str | None:
    if isinstance(value, nn.Module):
        return weights_hash(value)
    if isinstance(value, Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest()
    # Of a list, not even the length will stay.
    return repr(value) if _is_plain(value) and not isinstance(value, list) else None


def _held(function: Any) -> Iterator[object]:
    if isinstance(function, partial):
        yield from (*function.args, *dict(sorted(function.keywords.items())).values())
        function = function.func
    function = inspect.unwrap(function)
    owner = function if not inspect.isroutine(function) else getattr(function, "__self__", None)
    yield from dict(sorted(getattr(owner, "__dict__", {}).items())).values()
    plain = getattr(function, "__func__", function)
    if inspect.isfunction(plain):
        seen = inspect.getclosurevars(plain)
        yield from seen.nonlocals.values()
        yield from (one for one in seen.globals.values() if isinstance(one, nn.Module | Tensor))
        yield from (*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values())


def code_hashes(names: Sequence[str]) -> dict[str, str]:
    """sha256 of the module files of networks named ``package.module:function``."""
    hashes = {}
    for name in names:
        module, colon, _ = name.partition(":")
        if colon and module not in LIBRARIES:
            spec = find_spec(module) if _importable(module) else None
            if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
                hashes[f"code {module}"] = file_hash(Path(spec.origin), "student")
    return hashes


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def file_hash(path: Path, setting: str) -> str:
    """sha256 of a file's bytes; those of a file that has not changed are read once a process."""
    try:
        status = path.stat()
        return _file_hash(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise SettingError(setting, path, f"a readable file ({error.strerror})") from None


@lru_cache(maxsize=64)  # every run of a sweep asks for the same checkpoint, several times
def _file_hash(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
