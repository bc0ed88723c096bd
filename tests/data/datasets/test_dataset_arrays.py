import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fskd.data.datasets.arrays import from_arrays
from fskd.data.datasets.base import Source, channel_stats, load
from fskd.errors import DataError, SettingError

LABELS = np.arange(24) % 3


@pytest.fixture
def images(make_pixels):
    """uint8 (24, 3, 6, 5)."""
    return make_pixels(24, 3, 6, 5)


@pytest.fixture
def save(tmp_path):
    """Writes arrays to a file and returns where it is."""

    def call(**arrays):
        path = tmp_path / "images.npz"
        np.savez(path, **arrays)
        return Source(path)

    return call


def test_every_form_gives_the_same_images(images):
    expected = from_arrays((images, LABELS))
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    forms = [
        (last, LABELS.tolist()),
        (images / 255, LABELS.astype(np.uint8)),
        ((images / 255).astype(np.float32), LABELS),
        (torch.tensor(images), torch.tensor(LABELS)),
        (torch.tensor(images) / 255, torch.tensor(LABELS, dtype=torch.int32)),
        TensorDataset(torch.tensor(images), torch.tensor(LABELS)),
        list(zip(torch.tensor(images) / 255, LABELS, strict=True)),
        [(Image.fromarray(image), int(label)) for image, label in zip(last, LABELS, strict=True)],
        list(zip(last, LABELS, strict=True)),
    ]
    for form in forms:
        splits = from_arrays(form)
        assert splits.train.fingerprint == expected.train.fingerprint
        assert splits.test.fingerprint == expected.test.fingerprint


def test_grey_images(make_pixels):
    grey = make_pixels(24, 6, 5)
    expected = from_arrays((grey, LABELS)).train
    assert expected.size == (1, 6, 5)
    pictures = [(Image.fromarray(image), label) for image, label in zip(grey, LABELS, strict=True)]
    for form in ((grey[..., None], LABELS), (grey[:, None], LABELS), pictures):
        assert from_arrays(form).train.fingerprint == expected.fingerprint


def test_floats_are_rounded():
    values = np.array([0, 0.5 / 255 - 1e-6, 0.5 / 255 + 1e-6, 1]).reshape(1, 2, 2).repeat(8, 0)
    train = from_arrays((values, [0] * 8)).train
    assert train.images[0].flatten().tolist() == [0, 0, 1, 255]


def test_half_precision_is_accepted(images):
    for dtype in (torch.float16, torch.bfloat16):
        train = from_arrays((torch.tensor(images).to(dtype) / 256, LABELS)).train
        assert train.images.dtype == torch.uint8


def test_quarter_is_stratified_fixed_and_disjoint(images):
    train, test = from_arrays((images, LABELS))
    assert train.targets.bincount().tolist() == [6, 6, 6]
    assert test.targets.bincount().tolist() == [2, 2, 2]
    together = torch.cat([train.images, test.images]).flatten(1).tolist()
    assert sorted(together) == sorted(images.reshape(24, -1).tolist())
    assert (train.mean, train.std) == channel_stats(train.images) == (test.mean, test.std)


def test_given_test_part_and_names(images):
    train, test = from_arrays((images[:12], LABELS[:12]), (images[12:], LABELS[12:]))
    assert (len(train), len(test)) == (12, 12)
    assert train.classes == ("0", "1", "2")
    named = from_arrays((images, LABELS), (images, LABELS), classes="abcd").train
    assert named.classes == ("a", "b", "c", "d")


def test_images_are_copied(images):
    part = from_arrays((images, LABELS), (images, LABELS)).train
    before = part.images.clone()
    images[:] = 0
    assert torch.equal(part.images, before)


SQUARE = np.zeros((24, 6, 5), np.uint8)


class Endless(IterableDataset):
    """Has no positions."""

    def __iter__(self):
        return iter([(SQUARE[0], 0)])


def test_names_of_classes_are_numbered_alike_in_both_parts(images):
    names = np.array(["zebra", "ant", "bee"])[LABELS]
    for form in (names, names.tolist(), [name.encode() for name in names]):
        train, test = from_arrays((images, form), (images[:2], form[:2]))
        assert train.classes == test.classes == ("ant", "bee", "zebra")
        assert train.targets.tolist() == [2, 0, 1] * 8
        assert test.targets.tolist() == [2, 0]
    pairs = list(zip(images, names, strict=True))
    assert from_arrays(pairs, pairs).train.fingerprint == train.fingerprint
    given = from_arrays((images, names), classes=["zebra", "bee", "ant", "cow"]).train
    assert given.classes == ("zebra", "bee", "ant", "cow")
    assert given.targets.bincount().tolist() == [6, 6, 6]


def test_order_of_classes(images):
    names = np.array(["9", "10", "-1"])[LABELS]
    assert from_arrays((images, names)).train.classes == ("-1", "9", "10")
    assert from_arrays((images, names), class_order="sorted").train.classes == ("-1", "10", "9")
    with pytest.raises(SettingError, match=r"data\.class_order: size .* natural or sorted"):
        from_arrays((images, LABELS), class_order="size")


def test_share_to_test_on(images):
    default, half = from_arrays((images, LABELS)), from_arrays((images, LABELS), test_share=0.5)
    quarter = from_arrays((images, LABELS), test_share=0.25)
    assert quarter.test.fingerprint == default.test.fingerprint
    assert half.test.targets.bincount().tolist() == [4, 4, 4]
    with pytest.raises(SettingError, match=r"data\.test_share: 0\.5 .* have a test part"):
        from_arrays((images, LABELS), (images, LABELS), test_share=0.5)


def test_pictures_with_a_palette_become_rgb():
    grey = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5))
    for mode, channels in (("1", 1), ("L", 1), ("LA", 3), ("P", 3), ("RGBA", 3)):
        pictures = [(grey.convert(mode), label) for label in LABELS]
        assert from_arrays(pictures).train.size == (channels, 6, 5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SQUARE, LABELS[:-1], "24 images but 23 labels"),
        (SQUARE, LABELS - 1, r"label -1 is not in 0\.\.K-1"),
        (SQUARE, LABELS + 0.7, r"label 0\.7 is no whole number"),
        (SQUARE, np.eye(3, dtype=int)[LABELS], r"labels are int64 \(24, 3\).*argmax"),
        (SQUARE, LABELS * 2, "class 1 has no training image"),
        (SQUARE, LABELS + 1, r"class 0 has no training image.*\(subtract 1\)"),
        (SQUARE, np.full(24, 2**63, np.uint64), "label 9223372036854775808 is not"),
        (SQUARE.astype(np.int64), LABELS, r"images are int64, not uint8.*\.astype\(np\.uint8\)"),
        (SQUARE + np.uint16(4000), LABELS, "images are uint16.* 4000: divide them .* 4095 or"),
        (SQUARE.astype(bool), LABELS, r"images are bool.*\.astype\(np\.float32\)"),
        (SQUARE + 2.0, LABELS, "range from 2 to 2"),
        (SQUARE + 200.0, LABELS, "range from 200 to 200.*divide them by 255"),
        (SQUARE - 0.1, LABELS, "range from -0.1"),
        (SQUARE * np.nan, LABELS, "without NaN"),
        (SQUARE + np.inf, LABELS, "range from inf"),
        (SQUARE[0], LABELS[:6], r"images are \(6, 5\)"),
        (SQUARE[None], LABELS[:1], r"\(1, 24, 6, 5\); neither axis"),
        (np.zeros((24, 3, 5, 3), np.uint8), LABELS, "both the second and the last axis"),
        (np.zeros((24, 4, 5, 6), np.uint8), LABELS, "neither axis.*opacity"),
        (np.zeros((24, 6, 5, 4), np.uint8), LABELS, "neither axis.*opacity"),
        (SQUARE[:0], LABELS[:0], "there are no images"),
        (np.zeros((24, 0, 5), np.uint8), LABELS, "there are no images"),
        (SQUARE[:4], [0, 0, 0, 1], "no test part can be split off: class '1' has 1 image;"),
        (SQUARE[:4], ["a", "a", "a", "b"], "no test part can be split off: class 'b' has 1 image;"),
        (SQUARE[:1], [0], "no test part can be split off"),
    ],
)
def test_unsound_arrays_are_one_clear_line(x, y, message, save):
    with pytest.raises(DataError, match=f"arrays.*: .*{message}") as caught:
        from_arrays((x, y))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=rf"images\.npz.*: .*{message}"):
        load("npz", save(x=x, y=y))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (None, "expected .images, labels. or a dataset"),
        ([1, 2, 3], "expected .images, labels. or a dataset"),
        ((SQUARE,), "expected a pair"),
        ([], "there are no images"),
        ([(SQUARE[0], 0), (SQUARE[0, 1:], 1)], r"image 1 is uint8 \(5, 5\), but image 0 is"),
        ([("a", 0)], "images are"),
        ([(SQUARE[0], None)], "label 0 is None"),
        ([(SQUARE[0], "a"), (SQUARE[0], 1)], "label 0 is 'a' but label 1 is 1"),
        ([(SQUARE[0], 3.7)], r"label 3\.7 is no whole number"),
        ([{"image": SQUARE[0], "label": 0}], "item 0 is a dict"),
        ([(Image.new("F", (5, 6), 300), 0)], "images need 0 to 1$"),
        ([(Image.new("HSV", (5, 6)), 0)], "mode HSV"),
        (DataLoader([(0, 0)]), "hand over its dataset"),
        (Endless(), "IterableDataset"),
        (([[1, 2], [3]], [0, 1]), "images form no array"),
    ],
)
def test_unsound_objects_are_one_clear_line(part, message):
    with pytest.raises(DataError, match=f"^arrays, train part: .*{message}"):
        from_arrays(part)


def test_test_part_must_fit(images):
    train = (images, LABELS)
    with pytest.raises(DataError, match=r"arrays, test part: label 3 is outside 0\.\.2"):
        from_arrays(train, (images, LABELS + 1))
    with pytest.raises(DataError, match="test images"):
        from_arrays(train, (images[:, :, 1:], LABELS))
    with pytest.raises(DataError, match=r"arrays, test part: label 0\.5 is no whole"):
        from_arrays(train, (images, LABELS / 2))
    with pytest.raises(DataError, match="names in the train part, numbers in the other"):
        from_arrays((images, LABELS.astype(str)), (images, LABELS))
    with pytest.raises(DataError, match="numbers in the train part, names in the other"):
        from_arrays(train, (images, LABELS.astype(str)))
    with pytest.raises(DataError, match="arrays, test part: label '3' is none of the classes 0, 1"):
        from_arrays((images, LABELS.astype(str)), (images, (LABELS + 1).astype(str)))


def test_npz_is_the_same_as_its_arrays(images, save):
    assert load("npz", save(x=images, y=LABELS)) is not None
    expected = from_arrays((images, LABELS))
    assert load("npz", save(x=images, y=LABELS)).train.fingerprint == expected.train.fingerprint
    both = load("npz", save(x=images, y=LABELS, x_test=images[:5], y_test=LABELS[:5], extra=1))
    assert (len(both.train), len(both.test)) == (24, 5)


def test_npz_reads_names_share_and_order(images, save):
    names = np.array(["9", "10", "8"])[LABELS]
    source = save(x=images, y=names)
    for share, order in ((None, "natural"), (0.5, "sorted")):
        expected = from_arrays((images, names), test_share=share, class_order=order)
        found = load("npz", source._replace(test_share=share, class_order=order))
        assert found.test.fingerprint == expected.test.fingerprint
        assert found.train.classes == expected.train.classes
    with pytest.raises(SettingError, match=r"data\.test_share"):
        load("npz", save(x=images, y=names, x_test=images, y_test=names)._replace(test_share=0.5))
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load("npz", save(x=images, y=names.astype(object)))


def test_one_pixel_or_label_changes_the_fingerprint(images, save):
    seen = [load("npz", save(x=images, y=LABELS)).train.fingerprint]
    part = load("npz", save(x=images, y=LABELS)).train
    row = next(i for i in range(24) if torch.equal(torch.tensor(images[i]), part.images[0]))
    images[row, 0, 0, 0] ^= 1
    seen.append(load("npz", save(x=images, y=LABELS)).train.fingerprint)
    test = {"x_test": images, "y_test": LABELS}
    for label in (0, 1):
        labels = np.array([label, *LABELS[1:], 0])
        source = save(x=np.concatenate([images, images[:1]]), y=labels, **test)
        seen.append(load("npz", source).train.fingerprint)
    assert len(set(seen)) == 4


@pytest.mark.parametrize("absent", ["x", "y", "x_test", "y_test"])
def test_missing_arrays_are_named(absent, images, save):
    arrays = {"x": images, "y": LABELS, "x_test": images, "y_test": LABELS}
    del arrays[absent]
    with pytest.raises(DataError, match=f"'{absent}'"):
        load("npz", save(**arrays))


def test_pickled_objects_are_refused(images, save, tmp_path):
    for source in (
        save(x=np.array([{}, {}], object), y=[0, 1]),
        save(x=images, y=np.array([0, None], object)),
    ):
        with pytest.raises(DataError, match="cannot be read: Object arrays cannot be loaded"):
            load("npz", source)
    path = tmp_path / "pickle.npz"
    path.write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        load("npz", Source(path))


def test_damaged_files(images, save, tmp_path):
    source = save(x=images, y=LABELS)
    whole = source.root.read_bytes()
    flipped = bytearray(whole)
    flipped[400] ^= 255
    for content in (b"", b"hello", whole[:500], whole[: len(whole) // 2], whole[:-5], flipped):
        source.root.write_bytes(content)
        with pytest.raises(DataError, match=r"images\.npz") as caught:
            load("npz", source)
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        load("npz", Source(tmp_path / "x.npy"))
    with pytest.raises(SettingError, match=r"the path of an \.npz file"):
        load("npz", Source(tmp_path))


def test_member_that_is_no_array(images, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", "hello")
        archive.writestr("y", "hello")
    with pytest.raises(DataError, match="'x' is not an array"):
        load("npz", Source(tmp_path / "a.npz"))


@pytest.mark.parametrize("most", [255, 4095, 65535])
def test_deep_pictures_of_a_dataset_keep_their_levels(most):
    rng = np.random.default_rng(0)
    values = rng.integers(0, most + 1, (24, 8, 8)).astype(np.uint16)
    values[:, 0, 0] = most
    pairs = [(Image.fromarray(image), label % 2) for label, image in enumerate(values)]
    train, test = from_arrays(pairs)
    assert len(train.images.unique()) > 200
    assert train.images.max() == test.images.max() == 255


def test_transparent_pictures_of_a_dataset_are_seen():
    rng = np.random.default_rng(0)
    pairs = []
    for label in range(24):
        image = Image.new("LA", (8, 8))
        image.putalpha(Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)))
        pairs.append((image, label % 2))
    assert len(from_arrays(pairs).train.images.unique()) > 200


def test_arrays_of_other_names_are_said(save):
    found = load("npz", save(x=SQUARE, y=LABELS, x_val=SQUARE, z=LABELS)).train.about
    assert found["left_out"] == {"array 'x_val'": 1, "array 'z'": 1}
    with pytest.raises(DataError, match=r"lacks the array 'x'; it has y, X$"):
        load("npz", save(X=SQUARE, y=LABELS))
