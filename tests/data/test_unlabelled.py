"""Images without labels: which they are, how they are cut, and how they come into a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fskd.data.augment import AugmentSettings
from fskd.data.datasets.base import load
from fskd.data.loader import DeviceLoader, WorkerLoader
from fskd.data.pictures import crop_box, folder_fingerprint, pictures
from fskd.data.unlabelled import from_folder, from_images, from_training
from fskd.errors import SettingError
from fskd.generators.mixup import Mixup
from fskd.methods.compose import join
from fskd.methods.kd import KD
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.runs.batches import batch_maker, check_processes
from fskd.runs.prepare import identify, prepare
from fskd.runs.rows import divide
from fskd.seeding import torch_generator
from fskd.train.batches import shard
from fskd.types import Batch, ImageSet

MOVES = {"data": {"augment": {"affine": 1.0}}}


@pytest.fixture
def train() -> ImageSet:
    return load("digits").train


def picture(path: Path, width: int, height: int, seed: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Five pictures of all sizes at several depths, two files that are none, and things beside."""
    folder = tmp_path / "album"
    picture(folder / "a.png", 40, 30, 1)
    picture(folder / "deep" / "er" / "b.JPG", 9, 31, 2)
    picture(folder / "deep" / "c.png", 5, 4, 3, "L")
    picture(folder / "d.bmp", 100, 100, 4)
    picture(folder / "z.webp", 64, 64, 5)
    picture(folder / ".hidden" / "x.png", 8, 8)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("not one of them")
    return folder


def job(tmp_path: Path, *layers: dict[str, Any]) -> Any:
    raw: dict[str, Any] = {"data": {"fraction": 0.1}, "budget": {"steps": 2}}
    for layer in layers:
        raw = merge(raw, layer)
    return prepare(resolve(raw), tmp_path)


class TestTrainingImages:
    def test_rest(self, tmp_path: Path) -> None:
        made = job(tmp_path, {"method": "kd", "data": {"unlabelled": "rest", "val": 100}})
        used = torch.cat([made.subset.train, made.subset.val, made.unlabelled.subset])
        assert used.sort().values.tolist() == list(range(1198))
        assert (made.unlabelled.source.targets == -1).all()
        assert len(made.unlabelled.subset) == 1198 - 120 - 100

    def test_a_number_is_next_in_the_order(self, tmp_path: Path) -> None:
        made = job(tmp_path, {"method": "kd", "data": {"unlabelled": "30", "val": 100}})
        assert made.ranking is not None
        assert torch.equal(made.unlabelled.subset, made.ranking.order[220:250])

    def test_too_many_or_none_left(self, train: ImageSet) -> None:
        left = torch.arange(5)
        with pytest.raises(SettingError, match=r"data.unlabelled: 6 .* at most 5"):
            from_training(train, left, 6)
        assert len(from_training(train, left, 5).subset) == 5
        with pytest.raises(SettingError, match="smaller subset"):
            from_training(train, left[:0], "rest")

    def test_given_images(self, train: ImageSet) -> None:
        found = from_images(torch.zeros(3, *train.size, dtype=torch.uint8), train)
        assert found.source.targets.tolist() == [-1] * 3
        assert found.source.mean == train.mean
        with pytest.raises(SettingError, match="3x8x8 images"):
            from_images(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), train)


class TestFolder:
    def test_reads_all_depths_and_names_what_it_cannot_read(
        self, album: Path, train: ImageSet
    ) -> None:
        found = from_folder(str(album), train, 0)
        assert isinstance(found.source.images, torch.Tensor)
        assert found.source.images.shape == (5, *train.size)
        assert found.source.images.dtype == torch.uint8
        assert "2 of 7 files" in found.note
        assert "broken.png" in found.note
        assert "cut.png" in found.note
        assert "\n" not in found.note

    def test_crops_follow_from_seed_and_index(self, album: Path, train: ImageSet) -> None:
        one, same, other = (from_folder(str(album), train, s).source.images for s in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("size", [(3, 8, 8), (1, 12, 6), (3, 5, 20)])
    @pytest.mark.parametrize("given", [(40, 30), (9, 31), (1, 1), (100, 7)])
    def test_box(self, size: tuple[int, int, int], given: tuple[int, int]) -> None:
        heights = []
        for index in range(50):
            left, top, right, bottom = crop_box(given, size, 3, index)
            assert 0 <= left < right <= given[0]
            assert 0 <= top < bottom <= given[1]
            assert (right - left) / (bottom - top) == pytest.approx(size[2] / size[1])
            heights.append(bottom - top)
        most = min(given[1], given[0] * size[1] / size[2])
        assert most / 2 <= min(heights) < 0.6 * most
        assert 0.9 * most < max(heights) <= most * (1 + 1e-9)

    def test_images_on_disk_stay_there(self, album: Path, train: ImageSet) -> None:
        class Disk:
            def __len__(self) -> int:
                return 1

            def load(self, index: int) -> Any:
                raise AssertionError

        lazy = replace(train, images=Disk(), size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
        found = from_folder(str(album), lazy, 0)
        assert len(found.source) == 5
        assert "2 of 7 files" in found.note
        image = found.source.images.load(0)  # type: ignore[union-attr]
        assert image.size == (8, 8)
        held = from_folder(str(album), replace(train, size=(3, 8, 8)), 0).source.images
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), held[0])
        rows = [
            WorkerLoader(
                found.source, torch.tensor([0, 2, 4]), 3, AugmentSettings(crop=1), 0,
                torch.device("cpu"), workers=0, view=view,
            ).batch(0).inputs
            for view in (0, 0, 1)
        ]  # fmt: skip
        assert rows[0].shape == (3, 3, 8, 8)
        assert torch.equal(rows[0], rows[1])
        assert not torch.equal(rows[0], rows[2])

    def test_refused(self, tmp_path: Path, album: Path, train: ImageSet) -> None:
        (tmp_path / "empty").mkdir()
        bad = tmp_path / "bad"
        bad.mkdir()
        (bad / "x.png").write_bytes(b"")
        for place, words in (
            (tmp_path / "nowhere", "there is none"),
            (tmp_path / "empty", "a folder with images"),
            (bad, "images that are whole"),
            (album / "a.png", "there is none"),
        ):
            with pytest.raises(SettingError, match=words) as error:
                from_folder(str(place), train, 0)
            assert error.value.setting == "data.unlabelled"

    def test_never_the_test_part(self, tmp_path: Path) -> None:
        for part in ("train/a", "test/a", "train/test", "set/val/b", "more"):
            picture(tmp_path / part / "x.png", 8, 8)
        for place in ("", "test", "test/a", "set", "set/val"):
            with pytest.raises(SettingError, match="test images"):
                pictures(str(tmp_path / place), tmp_path)
        for place in ("train", "more"):
            pictures(str(tmp_path / place), tmp_path)

    def test_key_is_of_the_pictures_not_the_place(self, album: Path, tmp_path: Path) -> None:
        def key(folder: Path) -> str:
            raw = {"method": "kd", "data": {"fraction": 0.1, "unlabelled": str(folder)}}
            return identify(resolve(raw))[0].key()

        first = key(album)
        moved = album.rename(tmp_path / "elsewhere")
        assert key(moved) == first
        picture(moved / "new.png", 8, 8)
        assert key(moved) != first

    def test_fingerprint_notices_a_change(self, album: Path, train: ImageSet) -> None:
        before = folder_fingerprint(str(album), train)
        picture(album / "d.bmp", 100, 100, 9)
        assert folder_fingerprint(str(album), train) != before


class TestSettings:
    @pytest.mark.parametrize("value", [0, -3, "0", "-1", 1.5, True, "", "  ", [3]])
    def test_bad_values(self, value: object) -> None:
        with pytest.raises(SettingError, match=r"data.unlabelled: .* expected rest, a number"):
            resolve({"method": "kd", "data": {"unlabelled": value}})

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            ({"method": "ce"}, "reads no images without labels"),
            ({"method": "mixup"}, "reads no images without labels"),
            ({"method": "kd", "data": {"unlabelled_share": 1}}, "unlabelled_share"),
            ({"data": {"sampler": "episodic", "shots": 1}}, "none with episodic"),
        ],
    )
    def test_refused(self, raw: dict[str, Any], words: str) -> None:
        with pytest.raises(SettingError, match=words):
            resolve({"data": {"unlabelled": "rest"}}, raw)

    def test_share_alone(self) -> None:
        with pytest.raises(SettingError, match="none without unlabelled"):
            resolve({"data": {"unlabelled_share": 0.3}})

    def test_keys_of_other_runs_stay(self) -> None:
        assert "unlabelled" not in str(resolve({"method": "kd"}).payload())
        keys = {
            resolve({"method": "kd", "data": {"unlabelled": u}}).key() for u in (None, "rest", 5, 6)
        }
        assert len(keys) == 4

    def test_the_teacher_sees_none(self) -> None:
        with_some = resolve({"data": {"unlabelled": "rest", "unlabelled_share": 0.2}})
        assert with_some.teacher_run().key() == resolve({}).teacher_run().key()


class TestRows:
    @pytest.mark.parametrize("total", [2, 3, 7, 64])
    @pytest.mark.parametrize("share", [0.01, 0.5, 0.75, 0.99])
    @pytest.mark.parametrize("generator", [None, Mixup()])
    def test_all_rows_are_used(self, total: int, share: float, generator: Mixup | None) -> None:
        for views in (1, 2):
            try:
                rows = divide(total, generator, share, views)
            except SettingError:
                assert total < (1 + views) * (1 if generator is None else 2) + 1
                continue
            made = 0 if generator is None else rows.generated
            assert rows.real + rows.views * rows.unlabelled + made == total
            assert min(rows.real, rows.unlabelled) >= 1

    def test_no_unlabelled_rows(self) -> None:
        assert divide(64, None, None, 1) == (64, 0, 1, 64)
        assert divide(64, Mixup(), None, 1) == (32, 0, 1, 32)

    def test_batch(self, tmp_path: Path) -> None:
        made = job(tmp_path, MOVES, {"data": {"unlabelled": "rest", "unlabelled_share": 0.75}})
        batches, (stretch,) = batch_maker(made, torch.device("cpu")), made.method.stretches()
        batch = batches.batch(3, stretch)
        assert (batch.n_real, batch.count("unlabelled"), batch.n_generated) == (8, 24, 32)
        assert len(batch.inputs) == 64
        assert torch.equal(batch.inputs, batches.batch(3, stretch).inputs)
        assert not torch.equal(batch.inputs[8:32], batches.batch(4, stretch).inputs[8:32])
        assert batch.parents is not None
        assert (batch.parents == -1).any()
        # The labelled rows are those that the run would see without the others.
        plain = job(tmp_path, MOVES, {"optim": {"batch_size": 8}, "method": "kd"})
        alone = batch_maker(plain, torch.device("cpu")).batch(3, plain.method.stretches()[0])
        assert torch.equal(alone.inputs, batch.inputs[:8])
        assert torch.equal(alone.targets, batch.targets)

    def test_rows_only_where_they_are_read(self, tmp_path: Path) -> None:
        made = job(
            tmp_path, {"method": "kd+sskd", "generator": "none", "data": {"unlabelled": "rest"}}
        )
        batches = batch_maker(made, torch.device("cpu"))
        for stretch in made.method.stretches():
            batch = batches.batch(0, stretch)
            assert batch.count("unlabelled") == (32 if stretch.unlabelled else 0)

    def test_views_differ_and_are_in_the_same_order(self, train: ImageSet) -> None:
        def rows(view: int, moves: AugmentSettings) -> torch.Tensor:
            device = torch.device("cpu")
            return DeviceLoader(train, torch.arange(50), 8, moves, 1, device, view).batch(0).inputs

        assert torch.equal(rows(0, AugmentSettings()), rows(1, AugmentSettings()))
        assert not torch.equal(*(rows(view, AugmentSettings(affine=1)) for view in (0, 1)))

    def test_processes_share_rows_in_pairs(self, tmp_path: Path) -> None:
        """Row i of the second view belongs to row i of the first in every process."""
        made = job(tmp_path, {"method": "kd", "data": {"unlabelled": "rest"}})
        images = torch.arange(4.0).repeat(2).view(8, 1, 1, 1)
        targets = torch.arange(2)
        joint = Batch(
            torch.cat([torch.zeros(2, 1, 1, 1), images]), targets, targets,
            {"unlabelled": slice(2, 10)},
        )  # fmt: skip
        for rank in range(2):
            mine = shard(joint, rank, 2)
            first, second = mine.inputs[mine.part("unlabelled")].flatten().chunk(2)
            assert torch.equal(first, second)
        check_processes(made, 2)
        with pytest.raises(SettingError, match="unlabelled rows that 3 processes"):
            check_processes(made._replace(rows=made.rows._replace(real=33)), 3)


class TestGenerators:
    def batch(self, unlabelled: int = 6) -> Batch:
        rng = torch_generator(0, "test")
        inputs, targets = torch.rand(4 + unlabelled, 1, 4, 4, generator=rng), torch.arange(4) % 3
        parts = {"unlabelled": slice(4, 4 + unlabelled)} if unlabelled else {}
        return Batch(inputs, targets, torch.arange(4), parts)

    def test_parents_may_be_unlabelled(self) -> None:
        longer = Mixup()(self.batch(), torch_generator(0), 10)
        assert longer.part("unlabelled") == slice(4, 10)
        assert longer.part("generated") == slice(10, 20)
        assert longer.parents is not None
        assert (longer.parents[:, 0] == -1).sum() == 6
        assert torch.equal(longer.inputs[:10], self.batch().inputs)

    @pytest.mark.parametrize("way", ["labelled", "different_class"])
    def test_labelled_parents_only(self, way: str) -> None:
        generator = Mixup(Mixup.Settings(pairs="different_class")) if way != "labelled" else Mixup()
        longer = generator(self.batch(), torch_generator(0), 10, labelled=way == "labelled")
        assert longer.parents is not None
        assert (longer.parents >= 0).all()
        assert longer.count("unlabelled") == 6

    @pytest.mark.parametrize("settings", [{"share": 1.0}, {"when": "alternate"}])
    def test_all_images_are_dropped_together(self, settings: dict[str, Any]) -> None:
        generator = Mixup(Mixup.Settings(**settings))
        for seed in range(6):
            longer = generator(self.batch(), torch_generator(seed), 10)
            kept = (longer.n_real, longer.count("unlabelled"), longer.n_generated)
            assert kept in ((0, 0, 10), (4, 6, 0))

    def test_methods_with_mixed_labels_see_labelled_parents(self, tmp_path: Path) -> None:
        made = job(tmp_path, {"method": "mixup+kdplus", "data": {"unlabelled": "rest"}})
        batch = batch_maker(made, torch.device("cpu")).batch(0, made.method.stretches()[-1])
        assert batch.parents is not None
        assert (batch.parents >= 0).all()


def test_kd_is_the_mean_over_labelled_and_unlabelled_rows() -> None:
    rng = torch_generator(0)
    student, teacher = torch.randn(2, 7, 5, generator=rng)
    targets = torch.arange(3)
    batch = Batch(torch.zeros(7, 1, 2, 2), targets, targets, {"unlabelled": slice(3, 7)})
    (stretch,) = join([("kd", KD.Settings())]).stretches()
    assert stretch.objective is not None
    found = stretch.objective.terms(batch, [student], teacher)
    t = stretch.objective.temperature
    p, q = (torch.softmax(x / t, 1) for x in (teacher, student))
    expected = t * t * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(found["kd"], expected)
    torch.testing.assert_close(found["ce"], torch.nn.functional.cross_entropy(student[:3], targets))


def test_cut_off_files_are_left_out_of_crops_on_disk_too(
    train: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name, 40, 30)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-99])
    monkeypatch.setattr("fskd.data.pictures.MEMORY_LIMIT", 0)
    found = from_folder(str(tmp_path), train, seed=0)
    assert len(found.subset) == 1
    assert "1 of 2 files cannot be read" in found.note


@pytest.mark.parametrize("name", ["Validation", "testing", "valid"])
def test_a_test_part_is_refused_however_it_is_spelled(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "Training" / "a" / "x.png", 9, 9)
    picture(tmp_path / name / "a" / "x.png", 9, 9)
    assert len(pictures(str(tmp_path / "Training"), tmp_path, ["a"])) == 1
    with pytest.raises(SettingError, match="without the data's test images"):
        pictures(str(tmp_path / name), tmp_path, ["a"])
