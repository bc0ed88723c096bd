"""Orders in runs: from files, from the seed, and from a teacher, with a sampler made for this."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fskd
from fskd.config import Runtime
from fskd.data.datasets.base import load
from fskd.data.manifest import NAME, read_manifest, save_split, shipped
from fskd.data.samplers.base import Sampler, samplers
from fskd.data.samplers.stratified import Stratified
from fskd.data.split_files import read, write
from fskd.data.splits import order_hash, rank
from fskd.errors import DataError, FskdError, SettingError
from fskd.models.catalog import build
from fskd.models.taps import FeatureNet
from fskd.raw import merge
from fskd.resolve import resolve
from fskd.results.store import Result
from fskd.runs.prepare import prepare
from fskd.runs.ranking import fill_pool, split_name
from fskd.runs.runner import run
from fskd.runs.session import Session
from fskd.types import Pool

POOLS: list[Pool] = []


class Probe(Sampler):
    """Stratified, then sorted by teacher outputs within blocks of fifty; keeps what it saw."""

    reads = frozenset({"embedding", "logits"})

    def rank(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        POOLS.append(pool)
        order = Stratified().rank(pool, rng)
        assert pool.embeddings is not None
        assert pool.logits is not None
        value = (pool.embeddings.sum(1) + pool.logits.max(1).values).numpy()
        blocks = [order[i : i + 50] for i in range(0, len(order), 50)]
        return np.concatenate([block[np.argsort(value[block])] for block in blocks])


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Pool]]:
    samplers.names()  # discover before adding
    monkeypatch.setitem(samplers._parts, "probe", Probe)
    POOLS.clear()
    yield POOLS
    POOLS.clear()


PROBE: dict[str, Any] = {"data": {"sampler": "probe"}}


def go(out: Path, *layers: dict[str, Any], **runtime: Any) -> Result:
    return run(resolve(*layers), Session(Runtime(out=str(out), **runtime)))


# --- from a teacher ----------------------------------------------------------------------------


def test_method_without_teacher(
    tmp_path: Path, tiny: dict[str, Any], probe: list[Pool], out: Path
) -> None:
    """The sampler gets the outputs; the method does not, and training asks no query."""
    result = go(tmp_path, tiny, PROBE, {"method": "ce"})
    assert (result.teacher, result.teacher_queries, result.agreement) == (None, 0, None)
    assert result.split_queries == 1198
    assert {"teacher", "split", "train"} <= set(result.seconds)
    (pool,) = probe
    assert pool.embeddings is not None
    assert pool.logits is not None
    assert pool.embeddings.shape == (1198, 96)
    assert pool.logits.shape == (1198, 10)
    assert pool.embeddings.dtype == pool.logits.dtype == torch.float32
    (file,) = tmp_path.glob("splits/digits/*.npz")
    stored = read(file)
    assert result.split_file == file.name
    assert result.split_sha256 == stored.sha256
    (folder,) = tmp_path.glob("digits-cnn_small-*")
    assert stored.teacher == {"name": "cnn_small", "key": folder.name.rpartition("-")[2]}
    assert result.config["teacher"]["name"] == "cnn_small"  # part of the key
    assert json.loads((Path(result.path) / "result.json").read_text())["split_queries"] == 1198
    # Other methods and sizes find it again, and share its order.
    other = go(tmp_path, tiny, PROBE, {"method": "kd", "data": {"fraction": 0.2}})
    assert len(probe) == 1
    assert other.split_sha256 == result.split_sha256
    assert other.teacher is not None
    assert other.teacher_queries == 240  # fixed views: each once; the ranking is not among them
    assert other.split_queries == 1198
    # Another split seed or another teacher is another order.
    go(tmp_path, tiny, PROBE, {"method": "ce", "data": {"split_seed": 3}})
    go(tmp_path, tiny, PROBE, {"method": "ce", "teacher": {"seed": 5}})
    assert len(probe) == 3
    assert len({read(path).sha256 for path in tmp_path.glob("splits/digits/*.npz")}) == 3


def test_pool_is_the_teacher_in_order() -> None:
    """Every row belongs to its image, whatever the size of the chunks."""
    images = load("digits").train
    net = FeatureNet(build("cnn_tiny", 10, 1))
    net.train()
    pool = fill_pool(net, images, frozenset({"embedding", "logits"}), torch.device("cpu"))
    assert isinstance(images.images, torch.Tensor)
    assert pool.embeddings is not None
    assert pool.logits is not None
    assert pool.targets is images.targets
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (images.mean, images.std))
    net.eval()
    for i in (0, 5, 600, 1197):
        with torch.no_grad():
            taps = net.net.taps(((images.images[i : i + 1] / 255) - mean) / std)
        torch.testing.assert_close(pool.embeddings[i], taps.embedding[0])
        torch.testing.assert_close(pool.logits[i], taps.logits[0])
    only = fill_pool(net, images, frozenset({"logits"}), torch.device("cpu"))
    assert only.embeddings is None


def test_seeds_share_the_pool(tmp_path: Path, tiny: dict[str, Any], probe: list[Pool]) -> None:
    """The teacher is run on all images once in a process, and again for another teacher."""
    session = Session(Runtime(out=str(tmp_path)))
    for change in ({"seed": 0}, {"seed": 1}, {"seed": 0, "teacher": {"seed": 7}}):
        run(resolve(tiny, PROBE, change), session)
    assert probe[0] is probe[1]
    assert probe[2] is not probe[0]
    assert not torch.equal(probe[2].logits, probe[0].logits)


def test_prepare_trains_nothing(tmp_path: Path, tiny: dict[str, Any], probe: list[Pool]) -> None:
    job = prepare(resolve(tiny, PROBE), tmp_path)
    assert job.ranking is None
    assert len(job.subset.train) == 120
    assert probe == []
    assert list(tmp_path.iterdir()) == []


def test_key_does_not_depend_on_what_was_done_before(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """The teacher's settings stand for the order in the key."""
    config = resolve(tiny, PROBE, {"method": "ce"})
    before = prepare(config, tmp_path).config.key()
    result = go(tmp_path, tiny, PROBE, {"method": "ce"})
    assert before == result.key == prepare(config, tmp_path).config.key()
    other = resolve(tiny, PROBE, {"method": "ce", "teacher": {"seed": 5}})
    assert prepare(other, tmp_path).config.key() != before
    plain = resolve(tiny, {"method": "ce", "teacher": {"seed": 5}})
    assert (
        prepare(plain, tmp_path).config.key()
        == prepare(resolve(tiny, {"method": "ce"}), tmp_path).config.key()
    )


def test_chain_shares_one_subset(tmp_path: Path, tiny: dict[str, Any], probe: list[Pool]) -> None:
    """The teacher that saw all data chooses for the assistant and the student."""
    top = {"name": "cnn_small", "budget": {"steps": 20}}
    assistant = {
        "name": "cnn_medium", "data": "subset", "seed": 2000, "method": "kd",
        "budget": {"steps": 4}, "teacher": top,
    }  # fmt: skip
    result = go(tmp_path, tiny, PROBE, {"method": "kd", "teacher": assistant})
    (folder,) = tmp_path.glob("digits-cnn_medium-*")
    taught = json.loads((folder / "result.json").read_text())
    assert taught["split_sha256"] == result.split_sha256
    assert taught["n_train"] == result.n_train == 120
    assert taught["split_file"] == result.split_file
    assert len(probe) == 1
    (file,) = tmp_path.glob("splits/digits/*.npz")
    found = read(file).teacher
    assert found is not None
    assert found["name"] == "cnn_small"


def test_a_teacher_cannot_choose_its_own_data(tmp_path: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"teacher\.data: 'subset' .* probe chooses"):
        prepare(resolve(tiny, PROBE, {"teacher": {"data": "subset"}}), tmp_path)


def test_no_teacher(tmp_path: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"teacher: None .* the sampler probe needs one"):
        prepare(resolve(tiny, PROBE, {"method": "ce", "teacher": None}), tmp_path)


def test_teacher_from_python(tmp_path: Path, probe: list[Pool]) -> None:
    torch.manual_seed(0)
    teacher = build("cnn_small", 10, 1)
    layers = {"settings": PROBE, "method": "ce", "shots": None, "fraction": 0.1, "steps": 2}
    results = [
        fskd.distill(teacher, "cnn_tiny", "digits", out=tmp_path, **layers) for _ in range(2)
    ]
    assert len(probe) == 1
    assert results[0].split_queries == 1198
    assert results[0].key == results[1].key
    torch.manual_seed(1)
    other = fskd.distill(build("cnn_small", 10, 1), "cnn_tiny", "digits", out=tmp_path, **layers)
    assert len(probe) == 2
    assert other.key != results[0].key


def test_damaged_ranking_says_what_to_delete(tmp_path: Path, tiny: dict[str, Any]) -> None:
    go(tmp_path, tiny, PROBE, {"method": "ce"})
    (file,) = tmp_path.glob("splits/digits/*.npz")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FskdError, match=f"damaged.*delete {file}"):
        go(tmp_path, tiny, PROBE, {"method": "ce", "seed": 4, "data": {"split_seed": 0}})


# --- from files --------------------------------------------------------------------------------


def test_file_and_seed_are_one_run(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """A committed file changes nothing but where the order is from."""
    known = prepare(resolve(tiny), tmp_path)
    made = prepare(resolve(tiny, {"data": {"splits": "none"}}), tmp_path)
    assert known.ranking is not None
    assert made.ranking is not None
    assert known.ranking.source == "digits/stratified-seed0.npz"
    assert made.ranking.source == "computed"
    assert torch.equal(known.subset.train, made.subset.train)
    assert known.config.key() == made.config.key()
    result = go(tmp_path, tiny, {"method": "ce"})
    assert (result.split_file, result.split_queries) == ("digits/stratified-seed0.npz", 0)
    assert go(tmp_path, tiny, {"method": "ce", "data": {"split_seed": 77}}).split_file == "computed"


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Any]) -> Callable[..., Path]:
    """Writes a file for the probe's seed 0 into a folder of one's own."""

    def make(order: torch.Tensor | None = None, listed: bool = True, **changes: Any) -> Path:
        images = load("digits").train
        made = rank("digits", "stratified", Stratified(), images, 99)
        order = made.order if order is None else order
        made = replace(
            made, sampler="probe", seed=0, order=order, sha256=order_hash(order),
            teacher={"name": "net", "key": "k"},
        )  # fmt: skip
        made, place = replace(made, **changes), tmp_path / "own"
        name = split_name(resolve(tiny, PROBE).data)
        if listed:
            save_split(place, name, made, "by hand", True)
        else:
            write(place / name, made)
        return place

    return make


def test_a_file_stands_for_the_teacher(
    folder: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any], probe: list[Pool]
) -> None:
    """No teacher is trained for a method without one, and the order is in the key."""
    mine = {"data": {"splits": str(folder())}}
    first = go(tmp_path / "runs", tiny, PROBE, mine, {"method": "ce"})
    assert probe == []
    assert first.split_file == "digits/probe-seed0.npz"
    assert first.split_queries == 1198
    assert first.config["teacher"] is None
    assert [path.name.split("-")[1] for path in (tmp_path / "runs").iterdir()] == ["cnn_tiny"]
    vgg = {"method": "ce", "teacher": "vgg8"}
    assert go(tmp_path / "runs", tiny, PROBE, mine, vgg).key == first.key
    folder(torch.arange(1198))
    second = go(tmp_path / "runs", tiny, PROBE, mine, {"method": "ce", "data": {"n": 200}})
    other = prepare(resolve(tiny, PROBE, mine, {"method": "ce"}), tmp_path)
    assert other.config.key() != first.key
    assert second.split_sha256 != first.split_sha256


def test_other_data(folder: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Both fingerprints, and the way out; for samplers with a teacher and without."""
    place = folder(fingerprint="0" * 64)
    with pytest.raises(DataError, match=r"0{64}, but the data here have 9e3d.*data\.splits=none"):
        prepare(resolve(tiny, PROBE, {"data": {"splits": str(place)}}), tmp_path)
    plain = replace(read(shipped() / "digits/stratified-seed0.npz"), fingerprint="0" * 64)
    write(place / "digits/stratified-seed0.npz", plain)
    with pytest.raises(DataError, match=r"0{64}, but the data here have 9e3d.*data\.splits=none"):
        prepare(resolve(tiny, {"data": {"splits": str(place)}}), tmp_path)
    prepare(resolve(tiny, {"data": {"splits": "none"}}), tmp_path)


def test_tampering_stops_a_run(
    folder: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]
) -> None:
    place = folder()
    config = resolve(tiny, PROBE, {"data": {"splits": str(place)}})
    prepare(config, tmp_path)
    folder(torch.arange(1198), listed=False)  # sound, but not the one that is listed
    with pytest.raises(DataError, match=NAME):
        prepare(config, tmp_path)
    (place / NAME).unlink()
    prepare(config, tmp_path)
    folder(listed=False, seed=1)
    with pytest.raises(DataError, match="holds the order of"):
        prepare(config, tmp_path)


def test_manifest_checks_a_computed_order(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """A listed file that is absent still says what the seed must give."""
    place, name = tmp_path / "own", "digits/stratified-seed0.npz"
    known = read(shipped() / name)
    for order, fits in ((known.order, True), (known.order.flip(0), False)):
        save_split(place, name, replace(known, order=order, sha256=order_hash(order)), "", True)
        (place / name).unlink()
        assert name in read_manifest(place)
        config = resolve(tiny, {"data": {"splits": str(place)}})
        if fits:
            prepare(config, tmp_path)
        else:
            with pytest.raises(DataError, match="order here"):
                prepare(config, tmp_path)


def test_split_file(folder: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Any file by its path; its hash is in the key, its place is not."""
    file = folder() / "digits/probe-seed0.npz"
    moved = tmp_path / "x.npz"
    moved.write_bytes(file.read_bytes())
    jobs = [
        prepare(resolve(tiny, {"method": "ce", "data": {"split_file": str(path)}}), tmp_path)
        for path in (file, moved)
    ]
    assert jobs[0].config.key() == jobs[1].config.key()
    assert jobs[0].config.key() != prepare(resolve(tiny, {"method": "ce"}), tmp_path).config.key()
    assert jobs[0].subset.train.tolist() == read(file).order[:120].tolist()
    shots = {"method": "ce", "data": {"split_file": str(file), "shots": 3}}
    assert len(prepare(resolve(tiny, shots), tmp_path).subset.train) == 30
    folder(torch.arange(1198))
    with pytest.raises(SettingError, match=r"data\.shots: 3 .* are not 3 of every class"):
        prepare(resolve(tiny, shots), tmp_path)


def test_teacher_sees_the_same_file(
    folder: Callable[..., Path], tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """With data=subset also the teacher; with data=full it does not know of the file."""
    file = {"data": {"split_file": str(folder() / "digits/probe-seed0.npz")}}
    keys = set()
    for part in ("subset", "full"):
        result = go(tmp_path / "r", tiny, file, {"method": "kd", "teacher": {"data": part}})
        assert result.teacher is not None
        about = json.loads((tmp_path / "r" / result.teacher["run"] / "result.json").read_text())
        assert (about["split_sha256"] == result.split_sha256) == (part == "subset")
        keys.add(result.key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"splits": "/nowhere"}, r"data\.splits: '/nowhere' .* a folder"),
        ({"split_file": "/nowhere.npz"}, r"data\.split_file: '/nowhere.npz' .*there is none"),
    ],
)
def test_mistakes(data: dict[str, Any], word: str, tmp_path: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=word):
        prepare(resolve(merge(tiny, {"data": data})), tmp_path)
