"""Hashes of what a setting names but does not determine: weights, code, files."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from fskd.errors import SettingError
from fskd.models.catalog import LIBRARIES


def weights_hash(module: nn.Module) -> str:
    """sha256 over a network's description and the names and values of its weights."""
    digest = hashlib.sha256(repr(module).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())  # NumPy knows no bfloat16
    return digest.hexdigest()


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
