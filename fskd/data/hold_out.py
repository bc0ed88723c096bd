"""Sets a part of the images aside to test on, always the same ones."""

import math
from collections.abc import Sequence

import numpy as np

from fskd.errors import DataError, SettingError

TEST_SHARE = 0.25


def hold_out(
    labels: np.ndarray | Sequence[int],
    share: float | None,
    name: str,
    classes: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into those to train on and those to test on, each class by about the share.

    Args:
        labels: Class of each image, whole numbers (N,).
        share: Share to test on, in (0, 1); a quarter if None.
        name: Name of the data, for messages.
        classes: Names of the classes, for messages; their numbers by default.

    Returns:
        Positions of the images kept and of those held out, int64, in mixed order.

    Raises:
        SettingError: The share is not in (0, 1), or too small or large for that many classes.
        DataError: A class has a single image.

    Example:
        >>> [len(part) for part in hold_out([0, 1] * 4, 0.25, "data")]
        [6, 2]
    """
    from sklearn.model_selection import train_test_split

    share = TEST_SHARE if share is None else share
    if not 0 < share < 1:
        raise SettingError("data.test_share", share, "a number in (0, 1)")
    present, counts = np.unique(np.asarray(labels), return_counts=True)
    if counts.min() < 2:
        single = int(present[counts.argmin()])
        shown = single if classes is None else classes[single]
        raise DataError(
            f"{name}: no test part can be split off: class '{shown}' has 1 image; give it another "
            "or hand over a test part"
        )
    total, n_test = len(labels), math.ceil(share * len(labels))
    if not len(present) <= n_test <= total - len(present):
        raise SettingError(
            "data.test_share",
            share,
            f"a share that leaves at least {len(present)} of the {total} images of {name} in both "
            "parts, one per class",
        )
    kept, held_out = train_test_split(
        np.arange(total), test_size=share, stratify=labels, random_state=0
    )
    return kept, held_out
