import numpy as np
import pandas as pd
import pytest
import torch

from fskd.data.hold_out import hold_out
from fskd.data.labels import natural, order_classes, read_labels
from fskd.errors import DataError, SettingError

WANTED = [2, 0, 1]


@pytest.mark.parametrize(
    "values",
    [
        WANTED,
        tuple(WANTED),
        np.array(WANTED, np.uint8),
        np.array(WANTED, np.float16),
        np.array(WANTED, object),
        np.array(WANTED)[:, None],
        [[2], [0], [1]],
        [2.0, 0, 1],
        [np.int64(2), np.uint8(0), np.array(1)],
        torch.tensor(WANTED),
        torch.tensor(WANTED, dtype=torch.int16),
        torch.tensor(WANTED, dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(2), torch.tensor([0]), 1],
        pd.Series(WANTED),
        pd.Series([2.0, 0.0, 1.0], index=[7, 8, 9]),
    ],
)
def test_numbers_are_taken_as_they_are(values):
    labels = read_labels(values, "here")
    assert labels.targets.tolist() == WANTED
    assert labels.targets.dtype == np.int64
    assert labels.classes is None


def test_bools_are_0_and_1():
    for values in ([True, False], np.array([True, False]), torch.tensor([True, False])):
        assert read_labels(values, "here").targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    "values",
    [
        ["c", "a", "b"],
        np.array(["c", "a", "b"]),
        np.array([b"c", b"a", b"b"]),
        np.array(["c", "a", "b"], object),
        [b"c", np.str_("a"), "b"],
        pd.Series(["c", "a", "b"]),
        pd.Categorical(["c", "a", "b"]),
    ],
)
def test_names_are_numbered(values):
    labels = read_labels(values, "here")
    assert labels.targets.tolist() == WANTED
    assert labels.targets.dtype == np.int64
    assert labels.classes == ("a", "b", "c")


def test_numbers_in_text_are_names_in_natural_order():
    digits = [str(digit) for digit in (3, 11, 0, 2, 10, 1, 9, 8, 7, 6, 5, 4)]
    labels = read_labels(digits, "here")
    assert labels.targets.tolist() == [int(digit) for digit in digits]
    assert labels.classes == tuple(map(str, range(12)))
    assert read_labels(["0", "10", "9"], "here").classes == ("0", "9", "10")
    assert read_labels(["0", "10", "9"], "here", order="sorted").classes == ("0", "10", "9")


def test_known_classes_decide():
    labels = read_labels(["b"], "test", classes=["c", "b"])
    assert (labels.targets.tolist(), labels.classes) == ([1], ("c", "b"))
    with pytest.raises(DataError, match=r"^test: label 'x' is none of the classes c, b$"):
        read_labels(["b", "x"], "test", classes=["c", "b"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 3.7], r"label 3\.7 is no whole number \(image 1\)"),
        (np.array([0, np.nan]), r"label nan is no whole number \(image 1\)"),
        (torch.tensor([np.inf]), "label inf is no whole number"),
        ([0, 1, -1], r"label -1 is not in 0\.\.K-1 \(image 2\)"),
        (np.array([2**31]), r"label 2147483648 is not in 0\.\.K-1"),
        ([0, 10**30], "label 1 is not in"),
        ([-(10**400)], "label 0 is not in"),
        ([10**400, 0.5], "label 0 is not in"),
        ([2**63, -1], "label (9|-1)"),
        ([1e300], r"label 1e\+300 is not in"),
        (["a", 1], "label 0 is 'a' but label 1 is 1"),
        ([1, "1"], "label 0 is 1 but label 1 is '1'"),
        (pd.Series(["a", None], dtype=object), "label 1 is None"),
        ([0, None], "label 1 is None, neither"),
        ([0, pd.DataFrame({"a": [1, 2]})], "label 1 is a 0 1 1 2, neither"),
        ([0, 1j], "label 1 is 1j, neither"),
        (np.array([1j]), "label 0 is 1j, neither"),
        (np.array(["2020-01-01"], "datetime64[D]"), "label 0 is .* neither a number nor a name"),
        (["a", ""], "label 1 is an empty text"),
        ([b"\xff"], "label 0 is .* not UTF-8"),
        (np.eye(3), r"labels are float64 \(3, 3\), .*argmax"),
        (torch.eye(3), r"labels are float32 \(3, 3\), .*argmax"),
        ([[0, 1], [1, 0]], "label 0 has 2 values, .*argmax"),
        ([torch.eye(3)[0]], "label 0 has 3 values, .*argmax"),
        (3, r"labels are int64 \(\)"),
        ("text", r"labels are <U4 \(\)"),
        (None, r"labels are object \(\)"),
        ({1, 2}, r"labels are object \(\)"),
    ],
)
def test_anything_else_is_one_clear_line(values, message):
    with pytest.raises(DataError, match=f"^here: {message}") as caught:
        read_labels(values, "here")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_natural_order():
    assert natural(["10", "2", "-1", "3.5", "007"]) == ["-1", "2", "3.5", "007", "10"]
    assert natural(["7", "007"]) == ["007", "7"]
    for names in (["10", "9", "a"], ["b", "a"], ["1e5", "1e10"], ["nan", "2", "10"], ["²", "1"]):
        assert natural(names) == sorted(names)
    assert order_classes(["10", "9"]) == ["9", "10"]
    assert order_classes(["10", "9"], "sorted") == ["10", "9"]
    with pytest.raises(SettingError, match=r"^data\.class_order: alphabet"):
        order_classes([], "alphabet")


def test_held_out_images_are_those_of_scikit_learn():
    from sklearn.model_selection import train_test_split

    labels = np.random.default_rng(0).integers(0, 5, 203)
    expected = train_test_split(np.arange(203), test_size=0.25, stratify=labels, random_state=0)
    for share in (None, 0.25):
        for found, wanted in zip(hold_out(labels, share, "data"), expected, strict=True):
            assert np.array_equal(found, wanted)
    kept, held_out = hold_out(labels.tolist(), 0.1, "data")
    assert sorted([*kept, *held_out]) == list(range(203))
    assert len(held_out) == 21


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_beyond_a_part(share):
    with pytest.raises(SettingError, match=r"^data\.test_share: .* in \(0, 1\)"):
        hold_out([0, 0, 1, 1], share, "data")


def test_too_few_images_to_hold_any_out():
    with pytest.raises(DataError, match=r"^data: .* class 'b' has 1 image;"):
        hold_out([0, 0, 1], 0.25, "data", ["a", "b"])
    for share in (0.25, 0.8):
        with pytest.raises(
            SettingError, match=r"test_share: .* at least 2 of the 4 images of data"
        ):
            hold_out([0, 0, 1, 1], share, "data")
    assert [len(part) for part in hold_out([0, 0, 1, 1], 0.5, "data")] == [2, 2]


def test_categories_keep_their_order():
    class Categorical:
        categories = ("low", "mid", "high")

        def __array__(self, dtype=None, copy=None):
            return np.array(["high", "low", "high"], object)

    class Series(Categorical):
        categories = None
        cat = Categorical()

    for values in (Categorical(), Series()):
        labels = read_labels(values, "train")
        assert labels.targets.tolist() == [2, 0, 2]
        assert labels.classes == ("low", "mid", "high")
    assert read_labels(Categorical(), "test", classes=("high", "low")).targets.tolist() == [0, 1, 0]
