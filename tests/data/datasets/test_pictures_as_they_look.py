"""Pictures as people have them: what is read is what they look like, and nothing goes unsaid."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fskd.data.augment import AugmentSettings
from fskd.data.datasets import folder
from fskd.data.datasets.base import Source, load
from fskd.data.datasets.decode import Look, centre_square, open_rgb
from fskd.data.datasets.listing import readable
from fskd.data.loader import DeviceLoader, WorkerLoader, chunks
from fskd.errors import DataError, SettingError
from fskd.resolve import resolve
from fskd.runs.images import load_data
from fskd.types import ImageSet

Write = Callable[[Path, int], object]


def album(root: Path, save: Write, n: int = 8, classes: str = "ab") -> Source:
    """``root/<class>/<i>.png``, each file written by ``save(path, number)``."""
    number = 0
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(n):
            save(root / name / f"{index}.png", number)
            number += 1
    return Source(root, 16)


def grey(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values).save(path)


def texture(number: int, side: int = 20, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(number).integers(0, levels, (side, side))


def photo(number: int, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (side // 4, side // 4, 3))
    small = Image.fromarray(pixels.astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def distinct(part: ImageSet) -> int:
    return len({np.asarray(image).tobytes() for image in part.images})


class TestAlpha:
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_content_in_the_alpha_channel_is_seen(self, mode: str, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            alpha = Image.fromarray(texture(number).astype(np.uint8))
            black = Image.new("RGB" if mode == "RGBA" else "L", alpha.size)
            black.putalpha(alpha)
            assert black.mode == mode
            black.save(path)

        train, test = load("folder", album(tmp_path, save))
        assert distinct(train) == len(train)
        assert distinct(test) == len(test)

    @pytest.mark.parametrize(("background", "shown"), [("white", 255), ("#804020", (128, 64, 32))])
    def test_transparent_pixels_show_the_background(
        self, background: str, shown: object, tmp_path: Path
    ) -> None:
        palette = Image.new("P", (16, 16))
        palette.putpalette([9, 9, 9] * 256)
        for name, image, extra in (
            ("a.png", Image.new("RGBA", (16, 16), (9, 9, 9, 0)), {}),
            ("b.png", palette, {"transparency": 0}),
            ("c.png", Image.new("L", (16, 16), 9), {"transparency": 9}),
        ):
            image.save(tmp_path / name, **extra)
            pixels = np.asarray(open_rgb(tmp_path / name, Look(background)))
            assert (pixels == shown).all(), name

    def test_half_transparent_pixels_are_mixed(self, tmp_path: Path) -> None:
        Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
        assert np.asarray(open_rgb(tmp_path / "a.webp"))[0, 0, 0] == 127


class TestDeepImages:
    @pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bit_files_use_the_range_of_their_set(
        self, bits: int, suffix: str, tmp_path: Path
    ) -> None:
        most = 2**bits - 1

        def save(path: Path, number: int) -> None:
            values = texture(number, 16, most + 1).astype(np.uint16)
            values[0, 0] = most
            grey(values, path.with_suffix(f".{suffix}"))

        train, _ = load("folder", album(tmp_path, save))
        assert len(train.images.unique()) > 200
        assert train.images.max() == 255
        file = sorted((tmp_path / "a").iterdir())[0]
        look = Look(white=float(most))
        expected = np.rint(np.asarray(Image.open(file)) * (255 / most))
        assert np.array_equal(np.asarray(open_rgb(file, look))[..., 0], expected)

    def test_dark_files_keep_their_place_in_the_set(self, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            grey(np.full((16, 16), 4095 if number == 3 else 400, np.uint16), path)

        found = load("folder", album(tmp_path, save))
        values = torch.cat([part.images for part in found]).flatten(1)[:, 0]
        assert sorted(values.unique().tolist()) == [25, 255]

    def test_floats_are_read_in_zero_to_one(self, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            grey((texture(number, 16) / 255).astype(np.float32), path.with_suffix(".tiff"))

        train, _ = load("folder", album(tmp_path, save))
        assert len(train.images.unique()) > 200

    @pytest.mark.parametrize("values", [np.float32(300.0), np.float32("nan"), np.int32(70_000)])
    def test_values_without_a_range_are_one_line(self, values: object, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            grey(np.full((16, 16), values), path.with_suffix(".tiff"))

        with pytest.raises(DataError, match=r"images need 0 to (1|65535)$"):
            load("folder", album(tmp_path, save))

    def test_deep_colours_in_their_lower_byte_are_refused(self, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            path.write_bytes(deep_png(texture(number, 16, 256)))

        with pytest.raises(DataError, match="16-bit colour images whose values end at 255"):
            load("folder", album(tmp_path, save))


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (Pillow writes none)."""
    import struct
    import zlib

    side = len(values)
    rows = np.repeat(values[..., None], 3, 2).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(orientation: int, tmp_path: Path) -> None:
    upright = photo(0).crop((0, 0, 40, 24))
    moves = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(moves[orientation]) if orientation in moves else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.png")), np.asarray(upright))


def test_reduced_decoding_is_exact_enough_and_faster(tmp_path: Path) -> None:
    photo(1, 2400).save(tmp_path / "a.jpg", quality=92)
    whole = centre_square(open_rgb(tmp_path / "a.jpg"), 64)
    reduced = open_rgb(tmp_path / "a.jpg", Look(side=64))
    assert 256 <= min(reduced.size) < 2400
    difference = np.asarray(centre_square(reduced, 64), float) - np.asarray(whole, float)
    assert np.abs(difference).mean() < 1
    small = open_rgb(tmp_path / "a.jpg", Look(side=1300))
    assert small.size == (2400, 2400)


class TestFiles:
    @pytest.mark.parametrize("suffix", ["gif", "jfif", "avif", "heic", "JPG", "Jpeg", "tga", "jp2"])
    def test_more_kinds_are_read(self, suffix: str, tmp_path: Path) -> None:
        if f".{suffix.lower()}" not in readable():
            pytest.skip("Pillow cannot here")
        kind = {"jfif": "jpeg", "heic": "heif", "jp2": "jpeg2000"}.get(suffix, suffix.lower())
        kind = "jpeg" if kind == "jpg" else kind

        def save(path: Path, number: int) -> None:
            photo(number).save(path.with_suffix(f".{suffix}"), kind)

        train, test = load("folder", album(tmp_path, save))
        assert len(train) + len(test) == 16
        assert "left_out" not in train.about

    def test_sub_folders_and_links_are_read_once(self, tmp_path: Path) -> None:
        source = album(tmp_path / "data", lambda path, number: photo(number).save(path))
        deep = tmp_path / "data/a/2024/summer"
        deep.mkdir(parents=True)
        photo(90).save(deep / "x.png")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        photo(91).save(elsewhere / "y.png")
        os.symlink(elsewhere, tmp_path / "data/b/linked")
        os.symlink(tmp_path / "data/b", tmp_path / "data/b/circle")
        train, test = load("folder", source)
        assert len(train) + len(test) == 18

    def test_what_is_left_out_is_counted(self, tmp_path: Path) -> None:
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        for name in ("a/x.svg", "a/y.svg", "b/z.TXT", "b/README", "loose.png"):
            (tmp_path / name).write_text("hello")
        (tmp_path / "a/.hidden.svg").write_text("hello")
        about = load("folder", source).train.about
        expected = {".svg": 2, ".txt": 1, "no suffix": 1, "outside the class folders": 1}
        assert about["left_out"] == expected
        assert about["files"] == 16

    def test_all_bad_files_are_listed(self, tmp_path: Path) -> None:
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        for name in ("a/0.png", "a/1.png", "b/7.png"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:90])
        with pytest.raises(
            DataError, match=r"^3 bad files: .*a/0\.png.*a/1\.png.*b/7\.png"
        ) as error:
            load("folder", source)
        assert str(error.value).endswith("; data.on_error=skip leaves them out")
        train, test = load("folder", source._replace(skip_bad=True))
        assert len(train) + len(test) == 13
        assert train.about["unreadable"] == ["a/0.png", "a/1.png", "b/7.png"]
        assert all(int(image.max()) > 0 for part in (train, test) for image in part.images)

    def test_bad_files_on_disk_are_left_out_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        (tmp_path / "a/3.png").write_bytes((tmp_path / "a/3.png").read_bytes()[:90])
        train, test = load("folder", source._replace(skip_bad=True))
        assert len(train) + len(test) == 15
        for part in (train, test):
            for index in range(len(part)):
                part.images.load(index)  # type: ignore[union-attr]

    def test_a_class_without_any_good_image_is_refused(self, tmp_path: Path) -> None:
        source = album(tmp_path, lambda path, number: photo(number).save(path), n=2)
        for path in (tmp_path / "b").iterdir():
            path.write_bytes(b"no")
        with pytest.raises(DataError, match="no image of class 'b' can be read"):
            load("folder", source._replace(skip_bad=True))


class TestDivision:
    def test_class_folders_alone_are_divided(self, tmp_path: Path) -> None:
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        train, test = load("folder", source)
        again = load("folder", source)
        assert (len(train), len(test)) == (12, 4)
        assert train.targets.bincount().tolist() == [6, 6]
        assert test.targets.bincount().tolist() == [2, 2]
        assert torch.equal(test.images, again.test.images)
        assert train.about["test_share"] == 0.25
        assert len(load("folder", source._replace(test_share=0.5)).test) == 8

    def test_a_share_beside_a_test_part_is_refused(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            album(tmp_path / part, lambda path, number: photo(number).save(path), n=2)
        with pytest.raises(SettingError, match=r"data\.test_share: 0\.5 .* there is .*test"):
            load("folder", Source(tmp_path, 16, test_share=0.5))
        assert len(load("folder", Source(tmp_path, 16)).train) == 4

    def test_numbers_are_in_their_order(self, tmp_path: Path) -> None:
        root = tmp_path / "data"
        for name in ("1", "2", "10"):
            album(root, lambda path, number: photo(number).save(path), 4, [name])  # type: ignore[arg-type]
        assert load("folder", Source(root, 16)).train.classes == ("1", "2", "10")
        as_text = Source(root, 16, class_order="sorted")
        assert load("folder", as_text).train.classes == ("1", "10", "2")


@pytest.mark.parametrize(
    "given", [{"test_share": 0.5}, {"class_order": "sorted"}, {"skip_bad": True}]
)
def test_what_has_no_meaning_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="no value: "):
        load("digits", Source()._replace(**given))  # type: ignore[arg-type]


class TestOnePreprocessing:
    @pytest.fixture
    def both(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ImageSet]:
        def save(path: Path, number: int) -> None:
            photo(number, 60).crop((0, 0, 60, 44)).save(path)

        source = album(tmp_path, save)
        held = load("folder", source).train
        monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)
        return [held, load("folder", source).train]

    @pytest.mark.parametrize("moves", [{}, {"crop": 2}, {"flip": True}, {"affine": 1.0}])
    def test_memory_and_disk_give_the_same_batches(
        self, both: list[ImageSet], moves: dict[str, float]
    ) -> None:
        settings = AugmentSettings.model_validate(moves)
        subset, device = torch.arange(12), torch.device("cpu")
        held = DeviceLoader(both[0], subset, 5, settings, 3, device)
        lazy = WorkerLoader(both[1], subset, 5, settings, 3, device, workers=0)
        for step in range(4):
            one, other = held.batch(step), lazy.batch(step)
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)


class TestKeptOnDisk:
    def test_a_second_start_decodes_nothing(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = album(tmp_path / "data", lambda path, number: photo(number).save(path))
        source = source._replace(cache_gib=1.0)
        first = load("folder", source)
        monkeypatch.setattr(folder, "decode", None)
        second = load("folder", source)
        assert torch.equal(first.train.images, second.train.images)
        assert first.train.fingerprint == second.train.fingerprint

    @pytest.mark.parametrize("change", ["content", "background", "size"])
    def test_what_changed_is_read_anew(self, change: str, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            image = photo(number).convert("RGBA")
            image.putalpha(100)
            image.save(path)

        source = album(tmp_path / "data", save)._replace(cache_gib=1.0)
        first = load("folder", source).train
        if change == "content":
            file = tmp_path / "data/a/0.png"
            photo(77).save(file)
            os.utime(file, (time.time() + 5, time.time() + 5))
        other = {"background": {"background": "red"}, "size": {"image_size": 24}}.get(change, {})
        parts = load("folder", source._replace(**other))
        assert parts.train.fingerprint != first.fingerprint or change == "content"
        pixels = torch.cat([part.images for part in parts])
        if change == "content":
            fresh = np.asarray(centre_square(photo(77), 16)).transpose(2, 0, 1)
            assert any(np.array_equal(image, fresh) for image in pixels)

    def test_a_damaged_copy_is_not_believed(self, tmp_path: Path, cache: Path) -> None:
        source = album(tmp_path / "data", lambda path, number: photo(number).save(path))
        source = source._replace(cache_gib=1.0)
        first = load("folder", source).train
        (file,) = (cache / "fskd/images").glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-10] ^= 255
        file.write_bytes(content)
        assert torch.equal(load("folder", source).train.images, first.images)
        file.write_bytes(b"no")
        assert torch.equal(load("folder", source).train.images, first.images)

    def test_room_is_limited(self, tmp_path: Path, cache: Path) -> None:
        one = 16 * 3 * 16 * 16 / (1 << 30)
        kept = cache / "fskd/images"
        for name in "xyz":
            source = album(tmp_path / name, lambda path, number: photo(number).save(path))
            load("folder", source._replace(cache_gib=one * 2.5))
        assert len(list(kept.glob("*.safetensors"))) == 2
        load("folder", source._replace(cache_gib=one / 2, image_size=24))
        assert len(list(kept.glob("*.safetensors"))) == 2
        load("folder", source._replace(cache_gib=0, image_size=20))
        assert len(list(kept.glob("*.safetensors"))) == 2

    def test_a_file_with_the_old_size_and_time_is_read_again(
        self, tmp_path: Path, cache: Path
    ) -> None:
        source = album(tmp_path / "data", lambda path, number: photo(number).save(path, "bmp"))
        load("folder", source._replace(cache_gib=1.0))
        changed = tmp_path / "data/a/0.png"
        times = changed.stat().st_atime_ns, changed.stat().st_mtime_ns
        photo(99).save(changed, "bmp")
        os.utime(changed, ns=times)  # as archivers do
        again = load("folder", source._replace(cache_gib=1.0))
        fresh = load("folder", source)
        assert [part.fingerprint for part in again] == [part.fingerprint for part in fresh]

    def test_a_file_that_could_not_be_read_is_tried_again(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = album(tmp_path / "data", lambda path, number: photo(number).save(path))
        source = source._replace(cache_gib=1.0, skip_bad=True)
        opened = Image.open

        def refuse(path: Path) -> Image.Image:
            if Path(path).name == "3.png":
                raise OSError("Stale file handle")
            return opened(path)

        with monkeypatch.context() as away:
            away.setattr("fskd.data.datasets.decode.Image.open", refuse)
            away.setattr(folder, "deep_files", lambda _: [])
            for _ in range(2):
                assert sum(map(len, load("folder", source))) == 14
        assert sum(map(len, load("folder", source))) == 16

    def test_a_user_without_a_home_keeps_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        assert len(load("folder", source._replace(cache_gib=1.0)).train) == 12


class TestLayout:
    @pytest.mark.parametrize(
        "names", [("Training", "Validation"), ("Train", "Test"), ("train", "valid")]
    )
    def test_parts_are_no_classes(self, names: tuple[str, str], tmp_path: Path) -> None:
        for name, n in zip(names, (5, 3), strict=True):
            album(tmp_path / name, lambda path, number: photo(number).save(path), n)
        train, test = load("folder", Source(tmp_path, 16))
        assert train.classes == ("a", "b")
        assert (len(train), len(test)) == (10, 6)

    def test_classes_may_be_called_like_parts(self, tmp_path: Path) -> None:
        for names in (["valid", "invalid"], ["training", "resting"]):
            root = tmp_path / names[0]
            album(root, lambda path, number: photo(number).save(path), 4, names)  # type: ignore[arg-type]
            assert load("folder", Source(root, 16)).train.classes == tuple(sorted(names))

    def test_pictures_beside_the_parts_are_counted(self, tmp_path: Path) -> None:
        for name in ("train", "test", "val", "more"):
            album(tmp_path / name, lambda path, number: photo(number).save(path), 3)
        (tmp_path / "empty").mkdir()
        train, test = load("folder", Source(tmp_path, 16))
        assert train.about["left_out"] == {"in more/": 6, "in val/": 6}
        assert "left_out" not in test.about

    def test_what_tools_leave_is_no_class_and_no_picture(self, tmp_path: Path) -> None:
        def save(path: Path, number: int) -> None:
            photo(number).save(path)

        source = album(tmp_path, save)
        album(tmp_path, save, 3, ["@eaDir", "__MACOSX", ".ipynb_checkpoints"])  # type: ignore[arg-type]
        album(tmp_path / "a", save, 3, ["@eaDir"])  # type: ignore[arg-type]
        (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
        train, test = load("folder", source)
        assert train.classes == ("a", "b")
        assert len(train) + len(test) == 16
        assert train.about["left_out"] == {"outside the class folders": 1}

    def test_a_pipe_is_counted_and_not_waited_for(self, tmp_path: Path) -> None:
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        os.mkfifo(tmp_path / "a/x.png")
        assert load("folder", source).train.about["left_out"] == {"no file": 1}

    def test_a_folder_that_cannot_be_read_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = album(tmp_path, lambda path, number: photo(number).save(path))
        (tmp_path / "a/closed").mkdir()
        scan = os.scandir

        def refuse(place: str | Path) -> object:
            if str(place).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(place))
            return scan(place)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
            load("folder", source)


def test_depth_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    def save(path: Path, number: int) -> None:
        Image.fromarray(texture(number, levels=4096).astype(np.uint16)).save(
            path.with_suffix(".jpg"), "png"
        )

    images = load("folder", album(tmp_path, save)).train.images
    assert isinstance(images, torch.Tensor)
    assert 100 < images.float().mean() < 155


def test_the_error_of_a_worker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)

    def save(path: Path, number: int) -> None:
        photo(number, 80).save(path, "jpeg")
        path.write_bytes(path.read_bytes()[:-99])

    train = load("folder", album(tmp_path, save)).train
    subset, device = torch.arange(12), torch.device("cpu")
    for workers in (0, 1):
        lazy = WorkerLoader(train, subset, 5, AugmentSettings(), 3, device, workers=workers)
        with pytest.raises(DataError, match=r"^/.* cannot be decoded: .*on_error=skip.*$") as error:
            lazy.batch(0)
        assert "\n" not in str(error.value)
        with pytest.raises(DataError, match=r"^/.* cannot be decoded: [^\n]*$"):
            next(chunks(train, device, workers=workers))


def test_mended_files_are_seen_in_the_same_process(tmp_path: Path) -> None:
    source = album(tmp_path, lambda path, number: photo(number).save(path))
    data = {"name": "folder", "root": str(source.root), "image_size": 16, "cache_gib": 0}
    config = resolve({"data": data})
    first = load_data(config)
    assert load_data(config).train.images is first.train.images
    photo(99).save(tmp_path / "a/new.png")
    assert sum(map(len, load_data(config))) == 17


def test_a_transparent_value_of_a_deep_picture_shows_the_background(tmp_path: Path) -> None:
    values = np.full((8, 8), 30000, np.uint16)
    values[:4] = 5
    Image.fromarray(values).save(tmp_path / "a.png", transparency=5)
    pixels = np.asarray(open_rgb(tmp_path / "a.png", Look("#804020")))
    assert np.array_equal(pixels[0, 0], [128, 64, 32])
    assert np.array_equal(pixels[7, 7], [117, 117, 117])


def test_a_picture_out_of_range_is_named(tmp_path: Path) -> None:
    source = album(tmp_path, lambda path, number: photo(number).save(path))
    grey(np.full((20, 20), 200, np.float32), tmp_path / "a/x.tif")
    with pytest.raises(
        DataError, match=r"floats from 200 to 200 in .*a/x\.tif; images need 0 to 1"
    ):
        load("folder", source)
