"""Images of the user's own in one NumPy archive."""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fskd.data.datasets.arrays import from_arrays
from fskd.data.datasets.base import Source, dataset
from fskd.data.datasets.files import one_line
from fskd.errors import DataError, SettingError
from fskd.types import DataSplits

_KEYS = ("x", "y", "x_test", "y_test")
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataset("npz", reads=("test_share", "class_order"))
def npz(source: Source) -> DataSplits:
    """Images of your own in an ``.npz`` file with ``x``, ``y`` and maybe ``x_test``, ``y_test``.

    ``x`` is (N, H, W), (N, H, W, C) or (N, C, H, W), C of 1 or 3, uint8 or floats in [0, 1] that
    are rounded to uint8; ``y`` is (N,), whole numbers 0..K-1 or names of classes, stored as texts.
    Without a test part a stratified share is set aside, always the same images. Mean and standard
    deviation are those of the training images. Pickled contents, such as arrays of Python objects,
    are refused, not run.

    Args:
        source: The root is the path of the file; ``test_share`` is a quarter by default.

    Raises:
        SettingError: There is no such file, or the share or the order of classes does not fit.
        DataError: The file is damaged or its arrays are not as described.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "squares.npz"
        ...     np.savez(path, x=np.zeros((8, 4, 4), np.uint8), y=[0, 1] * 4)
        ...     len(npz(Source(path)).train)
        6
    """
    path = source.root
    if path is None or not path.is_file():
        raise SettingError("data.root", path, "the path of an .npz file")
    arrays, others = _arrays(path)
    for key in ("x", "y"):
        if key not in arrays:
            there = ", ".join([*arrays, *others]) or "nothing"
            raise DataError(f"{path} lacks the array '{key}'; it has {there}")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{path} must have both 'x_test' and 'y_test', or neither")
    test = (arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None
    splits = from_arrays(
        (arrays["x"], arrays["y"]),
        test,
        name=str(path),
        test_share=source.test_share,
        class_order=source.class_order,
    )
    if not others:
        return splits
    left = {f"array '{name}'": 1 for name in others}
    about = {**splits.train.about, "files": len(arrays["x"]), "left_out": left}
    return splits._replace(train=replace(splits.train, about=about))


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are used, and the names of others."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file, or it is cut short")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS if key in archive}
            others = [key for key in archive.files if key not in _KEYS]
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    for key, array in arrays.items():
        # A member that is no array comes back as bytes.
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: '{key}' is not an array")
    return arrays, others
