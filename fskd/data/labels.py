"""Labels in any form, numbers or names of classes, as whole numbers 0..K-1."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fskd.errors import DataError, SettingError

CLASS_ORDERS = ("natural", "sorted")

_MAX_LABEL = 1 << 31
_N_NAMED = 5
# No exponents: "1e5" and "2e3" are names, such as of colours.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


class Labels(NamedTuple):
    """Labels of one part of a data set.

    Attributes:
        targets: Class of each image, int64 (N,), 0 or more.
        classes: Names of the K classes if the labels are names; None if they are numbers.
    """

    targets: np.ndarray
    classes: tuple[str, ...] | None


def read_labels(
    values: Any, where: str, *, classes: Sequence[str] | None = None, order: str = "natural"
) -> Labels:
    """Reads one label per image.

    Whole numbers, also as bools or floats such as 3.0, are taken as they are. Texts, also such as
    "10", are names of classes and are numbered in the order of the classes. Categories, such as
    those of pandas, keep their own order.

    Args:
        values: An array, a tensor or a sequence of N numbers or texts; one column (N, 1) will do.
        where: What they are the labels of, for messages.
        classes: The names that may occur, in order; by default those that do occur. The labels of
            a test part are read with the classes of the train part.
        order: One of ``CLASS_ORDERS``, unless there are ``classes``.

    Raises:
        SettingError: There is no such order.
        DataError: A label is neither a number 0, 1, ... nor a name, or is no class.

    Example:
        >>> read_labels(["9", "10", "9"], "train")
        Labels(targets=array([0, 1, 0]), classes=('9', '10'))
    """
    _check_order(order)
    classes = _categories(values) if classes is None else classes
    plain = _plain(values, where)
    if plain.ndim != 1:
        raise DataError(f"{where}: labels are {plain.dtype} {plain.shape}, {_advice(plain.ndim)}")
    if plain.dtype.kind == "U":
        return _named(plain, where, classes, order)
    return Labels(_whole(plain, where), None)


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order of their numbers if all are numbers; else in that of their characters.

    Example:
        >>> natural(["10", "9"]), natural(["10", "9", "x"])
        (['9', '10'], ['10', '9', 'x'])
    """
    listed = list(names)
    if all(_NUMBER.fullmatch(name) for name in listed):
        return sorted(listed, key=lambda name: (Decimal(name), name))
    return sorted(listed)


def order_classes(names: Iterable[str], order: str = "natural") -> list[str]:
    """Names of classes in the order in which they are numbered.

    Args:
        names: Each of them once.
        order: ``natural``, see there, or ``sorted`` for that of their characters, which is
            torchvision's.

    Raises:
        SettingError: There is no such order.
    """
    _check_order(order)
    return natural(names) if order == "natural" else sorted(names)


def _check_order(order: str) -> None:
    if order not in CLASS_ORDERS:
        raise SettingError("data.class_order", order, " or ".join(CLASS_ORDERS))


def _categories(values: Any) -> list[str] | None:
    """Names in the order that the labels come with, by which their codes count; None without."""
    names = getattr(getattr(values, "cat", values), "categories", None)
    listed = [] if names is None else list(names)
    return listed if listed and all(isinstance(name, str) for name in listed) else None


def _plain(values: Any, where: str) -> np.ndarray:
    """Numbers or texts as an array, (N,) unless they have another shape."""
    if isinstance(values, list | tuple):
        return _from_items(values, where)
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = values.float() if values.dtype == torch.bfloat16 else values
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and array.dtype.kind not in "biufU":
        return _from_items(array.tolist(), where)
    return array


def _from_items(values: Sequence[Any], where: str) -> np.ndarray:
    """Looks at the type of each item: NumPy would silently make the text "1" of a 1 next to "a"."""
    items = [_scalar(value) for value in values]
    named = [isinstance(item, str | bytes) for item in items]
    for index, item in enumerate(items):
        problem = _problem(item)
        if problem:
            raise DataError(f"{where}: label {index} {problem}")
        if named[index] != named[0]:
            raise DataError(
                f"{where}: label 0 is {items[0]!r:.80} but label {index} is {item!r:.80}; labels "
                "must be all names or all numbers"
            )
    if any(named):
        return np.array([_text(item, index, where) for index, item in enumerate(items)])
    return np.array(items)


def _problem(item: Any) -> str:
    if isinstance(item, list | tuple):
        return f"has {len(item)} values, {_advice(2)}"
    if not isinstance(item, str | bytes | int | float):
        return f"is {' '.join(repr(item).split()):.80}, neither a number nor a name"
    # Neither NumPy nor a message takes an integer of any size.
    if isinstance(item, int) and abs(item) > 1 << 63:
        return "is not in 0..K-1"
    return ""


def _scalar(value: Any) -> Any:
    """What an item holds if it is an array, a tensor or a list of one value."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value


def _text(item: str | bytes, index: int, where: str) -> str:
    try:
        return item.decode() if isinstance(item, bytes) else item
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: label {index} is {item!r}, which is not UTF-8") from error


def _advice(n_axes: int) -> str:
    hint = "; for one-hot labels use labels.argmax(1)" if n_axes == 2 else ""
    return f"not one whole number or name per image{hint}"


def _whole(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        # NaN and infinity differ from what they are rounded to, or are out of range.
        wrong = np.flatnonzero(~(np.isfinite(values) & (values == np.rint(values))))
        if len(wrong):
            raise DataError(
                f"{where}: label {values[wrong[0]]:g} is no whole number (image {wrong[0]})"
            )
    wrong = np.flatnonzero((values < 0) | (values >= _MAX_LABEL))
    if len(wrong):
        raise DataError(f"{where}: label {values[wrong[0]]} is not in 0..K-1 (image {wrong[0]})")
    return values.astype(np.int64)


def _named(values: np.ndarray, where: str, classes: Sequence[str] | None, order: str) -> Labels:
    known, inverse = np.unique(values, return_inverse=True)
    names = [str(name) for name in known]
    if "" in names:
        raise DataError(f"{where}: label {int(np.argmax(values == ''))} is an empty text")
    ordered = order_classes(names, order) if classes is None else list(classes)
    place = {name: number for number, name in enumerate(ordered)}
    for name in names:
        if name not in place:
            listing = ", ".join(ordered[:_N_NAMED]) + (", ..." if len(ordered) > _N_NAMED else "")
            raise DataError(f"{where}: label {name!r} is none of the classes {listing}")
    numbers = np.array([place[name] for name in names], dtype=np.int64)
    return Labels(numbers[inverse], tuple(ordered))
