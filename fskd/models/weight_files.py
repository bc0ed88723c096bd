"""What a file of weights holds, told by its bytes and read without running code it brings along."""

import re
import warnings
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fskd.errors import SettingError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar", ".tar", ".bin")
WAY_OUT = "a file of weights that can be read, as torch.save(model.state_dict(), path) writes it"


def read_file(path: Path, setting: str) -> Any:
    """What a file holds: a state dict, or whatever a training script put around one.

    Args:
        path: A safetensors file or one that ``torch.save`` wrote, of one of the ``SUFFIXES``.
        setting: Name of the setting that the path came from, for messages.

    Raises:
        SettingError: If the file is missing, of another suffix, damaged or would run code.
    """
    if not path.is_file():
        raise SettingError(setting, f"'{path}' (no such file)", "a checkpoint file")
    if not path.name.lower().endswith(SUFFIXES):
        accepted = f"a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
        raise SettingError(setting, f"'{path}'", accepted)
    try:
        return safetensors.torch.load_file(path) if _is_safetensors(path) else _read_torch(path)
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise SettingError(setting, f"'{path}' ({_reason(error)})", WAY_OUT) from error


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if "with TorchScript archives" in str(error):
        return "a TorchScript archive, which is code"
    if not isinstance(error, UnpicklingError) or "global" not in str(error).lower():
        return "damaged, or not a checkpoint"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    which = f" ({named[1]})" if named else ""
    return f"it holds objects other than tensors{which}, and reading them could run code"


def _is_safetensors(path: Path) -> bool:
    # The length of the header comes first, then the header, which is JSON.
    with path.open("rb") as stream:
        start = stream.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length < path.stat().st_size


def _read_torch(path: Path) -> Any:
    # What torch warns of is either refused in one line or of no account here.
    with path.open("rb") as stream, warnings.catch_warnings(action="ignore"):
        if not stream.read(2).startswith((b"PK", b"\x80")):  # a zip file, or a pickle
            raise ValueError("neither safetensors nor written by torch.save")
        stream.seek(0)
        # Of a path, torch would go by the suffix.
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(stream, map_location="cpu", weights_only=True)


class Beside:
    """Stands for a harmless object that a script kept beside the weights; nothing of it is read."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class Entries:
    """Stands for a kind of dict: a plain one is made, as torch fills no other."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class Items:
    """Stands for a kind of list: a plain one is made."""

    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


class NumpyType:
    """Stands for ``numpy.dtype``, whose own reader trusts the file more than we do."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class NumpyArray:
    """Stands for a numpy array; ``tensor`` is None if it holds something else than numbers."""

    tensor: Tensor | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, columns_first, raw = state
        self.tensor = _numbers(kind, raw, shape, "F" if columns_first else "C")


class NumpyScalar(NumpyArray):
    """Stands for a numpy scalar."""

    def __init__(self, kind: NumpyType, raw: object = None) -> None:
        self.tensor = _numbers(kind, raw, (), "C")


def _numbers(kind: NumpyType, raw: object, shape: tuple[int, ...], order: Any) -> Tensor | None:
    dtype = np.dtype(kind.code)
    if dtype.kind not in "biufc" or dtype.itemsize > 16 or not isinstance(raw, bytes):
        return None
    values = np.frombuffer(raw, dtype.newbyteorder(kind.order)).reshape(shape, order=order)
    try:
        return torch.from_numpy(np.array(values, dtype, order="C"))
    except TypeError:  # such as numpy's long double
        return None


PATHS = ("PosixPath", "WindowsPath", "Path", "PurePath", "PurePosixPath", "PureWindowsPath")
NUMBERS = (
    "bool_",
    *(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (16, 32, 64)),
)
TYPES = ("list", "dict", "tuple", "int", "float", "str", "bool", "range", "slice", "frozenset")
# What names in a file become. Nothing listed here is the object that the file names, so that it
# neither matters which versions of numpy or Python wrote the file nor what their readers would do.
NAMES: dict[type, tuple[str, ...]] = {
    Beside: (
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
        *(f"builtins.{name}" for name in TYPES),
        *(f"numpy.{name}" for name in ("ndarray", "int8", "uint8", *NUMBERS)),
        "uuid.UUID",
        "torch.torch_version.TorchVersion",
    ),
    Entries: (
        "collections.defaultdict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    Items: ("collections.deque",),
    NumpyType: ("numpy.dtype",),
    NumpyArray: ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    NumpyScalar: ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
}


def _stand_in(base: type, path: str) -> type:
    # A class of that name: the pair of an object and a name is only known to torch 2.6 and later.
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__module__": module, "__qualname__": name})


STAND_INS: list[Any] = [_stand_in(base, path) for base, paths in NAMES.items() for path in paths]
