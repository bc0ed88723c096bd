"""The tidy table: from run directories, with a cache, and from other tools' CSV files."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fskd.results
from fskd.errors import FskdError, SettingError
from fskd.results import loading
from fskd.results.external import parse_mapping, read_csv_results
from fskd.results.loading import CACHE, library_versions, load
from fskd.results.store import write_text
from fskd.results.tidy import COLUMNS, combined

sys.path.insert(0, str(Path(__file__).parent))
from made import TEACHER, made, write

TEACHER_RUN = made("ce", 1000, 1000, key="t0", config={"student": "net_big"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six runs and their teacher."""
    runs = [made(m, seed=s, top1=0.5 + s / 10) for m in ("ce", "kd", "kdplus") for s in (0, 1)]
    return write(tmp_path / "runs", TEACHER_RUN, *runs)


# --- columns -----------------------------------------------------------------------------------


def test_columns(root: Path) -> None:
    """Every value of a result is where it belongs."""
    full = made(
        "fitnet", 20, 3, 0.75, top5=0.9, val_top1=0.7, agreement=0.8, tv_train=0.1, tv_test=0.2,
        tv_paths=0.3, peers_top1=[0.5], final_loss={"ce": 0.25}, device="cuda:0", processes=2,
        precision="bf16-mixed", config={"generator": {"name": "cutmix", "share": 0.5}},
    )  # fmt: skip
    table = load(write(root, full))
    assert dict(table.dtypes.astype(str)) == COLUMNS
    row = table.set_index("key").loc[full.key].to_dict()
    for name in set(COLUMNS) & set(vars(full)) - {"key", "path", "seconds", "versions", "teacher"}:
        value = getattr(full, name)
        assert row[name] == (json.dumps(value) if isinstance(value, list | dict) else value), name
    names = ("method", "generator", "dataset", "student", "sampler")
    expected = ("fitnet", "cutmix", "digits", "net_small", "stratified")
    assert tuple(row[name] for name in names) == expected
    assert (row["teacher"], row["teacher_top1"], row["teacher_key"]) == ("net_big", 0.9, "t0")
    assert (row["seed"], row["split_seed"], row["fraction"]) == (3, 3, 0.02)
    assert (row["seconds"], row["train_seconds"]) == (10.0, 2.0)
    assert row["path"] == str(root / full.key)
    assert json.loads(row["settings"])["generator.share"] == "0.5"
    assert library_versions(table) == {"torch": ["2"]}


def test_what_is_not_known_is_empty(root: Path) -> None:
    """No teacher, no shots, no top5."""
    row = load(root).query("method == 'ce' and role == 'student'").iloc[0]
    assert (row["teacher"], row["generator"], row["teacher_key"]) == ("", "", "")
    assert row[["shots", "top5", "teacher_top1", "teacher_n_train", "agreement"]].isna().all()


def test_all_data_is_fraction_one(tmp_path: Path) -> None:
    """Nothing that limits the examples."""
    write(tmp_path, made(config={"data.fraction": None}))
    write(tmp_path, made(config={"data.fraction": None, "data.shots": 5}))
    assert sorted(load(tmp_path)["fraction"].dropna()) == [1.0]


def test_roles(root: Path) -> None:
    """The run that others name as their teacher's."""
    table = load(root)
    assert list(table.loc[table["role"] == "teacher", "key"]) == ["t0"]
    assert (table["role"] == "student").sum() == 6


# --- arms --------------------------------------------------------------------------------------


def labels(root: Path) -> dict[str, str]:
    return load(root).set_index("key")["arm"].to_dict()


def test_arms_are_methods(root: Path) -> None:
    """Where nothing but seeds and sizes differs."""
    write(root, made(n=100), made(n=100, seed=1, config={"data.root": "/b"}))
    assert set(labels(root).values()) == {"ce", "kd", "kdplus"}


def test_arms_that_differ_in_settings(root: Path) -> None:
    """At one size; every run of that method then says what it has."""
    more = made(config={"budget.steps": 200})
    crop = made(n=100, config={"data.augment.crop": 4, "budget.steps": 200})
    found = labels(write(root, more, crop, made(n=100, config={"budget.steps": 200})))
    assert found[more.key] == "kd (data.augment.crop=0, budget.steps=200)"
    assert found[crop.key] == "kd (data.augment.crop=4, budget.steps=200)"
    assert found[made().key] == "kd (data.augment.crop=0, budget.steps=100)"
    assert found[made("kdplus").key] == "kdplus"


def test_budget_that_goes_with_the_size(root: Path) -> None:
    """More steps with more examples are one arm."""
    write(root, *(made(n=100, seed=seed, config={"budget.steps": 200}) for seed in (0, 1)))
    assert set(labels(root).values()) == {"ce", "kd", "kdplus"}


def test_generators(root: Path) -> None:
    """Named where a method has several; their own settings do not count as differences."""
    one = made("kdplus", config={"generator": {"name": "mixup", "alpha": 1}})
    two = made("kdplus", config={"generator": {"name": "cutmix", "beta": 1}})
    found = labels(write(root, one, two))
    assert (found[one.key], found[two.key]) == ("kdplus (mixup)", "kdplus (cutmix)")
    assert found[made("kdplus").key] == "kdplus"
    assert found[made().key] == "kd"


def test_teachers_and_datasets_are_no_arms(tmp_path: Path) -> None:
    """They are columns of their own."""
    other = TEACHER | {"name": "net_huge", "key": "t1"}
    huge = made(key="huge", teacher=other, config={"teacher": {"name": "net_huge", "seed": 1}})
    svhn = made(config={"data.name": "svhn", "data.augment.crop": 4})
    assert set(labels(write(tmp_path, made(), huge, svhn)).values()) == {"kd"}


def test_teachers_runs_tell_no_arms_apart(root: Path) -> None:
    """A teacher's longer training is no variant of the students' ``ce``."""
    student = made("ce", 1000, config={"student": "net_big", "budget.steps": 999})
    assert labels(write(root, student))[student.key] == "ce"


def test_names_of_the_caller(root: Path) -> None:
    """A protocol knows what its runs are called."""
    table = load(root, names={made().key: "plain KD"}).set_index("key")["arm"]
    assert table[made().key] == "plain KD"
    assert table[made(seed=1).key] == "kd"


def test_one_name_two_contents(tmp_path: Path) -> None:
    """Files of images all have the data set's name ``npz``."""
    names = {"config": {"data.name": "npz"}}
    write(tmp_path, made(key="a", **names), made(key="b", test_sha256="f" * 64, **names))
    assert sorted(load(tmp_path)["dataset"]) == ["npz@ddddeeee", "npz@ddddffff"]


def test_combined(tmp_path: Path) -> None:
    """Labels are made anew over all tables, and no run counts twice."""
    one, two = made(), made(config={"budget.steps": 200})
    a = load(write(tmp_path / "a", one))
    b = load(write(tmp_path / "b", one, two))
    assert set(a["arm"]) == {"kd"}
    both = combined(a, b)
    assert sorted(both["arm"]) == ["kd (budget.steps=100)", "kd (budget.steps=200)"]
    assert dict(both.dtypes.astype(str)) == COLUMNS
    assert list(combined(a, a)["key"]) == [one.key]


# --- cache -------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose results are read, in order."""
    found: list[str] = []
    plain = loading._entry

    def noted(root: Path, name: str, stamp: str) -> dict[str, Any]:
        found.append(name)
        return plain(root, name, stamp)

    monkeypatch.setattr(loading, "_entry", noted)
    return found


def test_cache(root: Path, reads: list[str]) -> None:
    """Nothing is read twice; new, changed and removed runs are noticed."""
    first = load(root)
    assert len(reads) == 7
    stamp = (root / CACHE).stat().st_mtime_ns
    pd.testing.assert_frame_equal(load(root), first)
    assert len(reads) == 7
    assert (root / CACHE).stat().st_mtime_ns == stamp
    reads.clear()
    write(root, made(n=20), made(top1=0.25))
    (root / made("ce").key / "result.json").unlink()
    table = load(root)
    assert sorted(reads) == sorted([made(n=20).key, made().key])
    assert table.set_index("key")["top1"][made().key] == 0.25
    assert made("ce").key not in set(table["key"])
    pd.testing.assert_frame_equal(table, load(root, cache=False))


def test_replaced_within_a_clock_tick(root: Path) -> None:
    """A result of equal size and time is another file."""
    load(root)
    path = root / made().key / "result.json"
    times = path.stat()
    write_text(path, made(top1=0.7, nll=0.5).to_json())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert load(root).set_index("key")["top1"][made().key] == 0.7


def test_no_cache(root: Path, reads: list[str]) -> None:
    """Neither read nor written."""
    load(root, cache=False)
    assert not (root / CACHE).exists()
    load(root)
    load(root, cache=False)
    assert len(reads) == 21


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other table", "other version"])
def test_damaged_cache(root: Path, damage: str, reads: list[str]) -> None:
    """Made anew, without a word."""
    expected = load(root)
    path = root / CACHE
    whole = path.read_bytes()
    if damage == "other table":
        pd.DataFrame({"folder": ["x"]}).to_parquet(path)
    elif damage == "other version":
        table = loading.pq.read_table(path).replace_schema_metadata({"fskd": "0"})
        loading.pq.write_table(table, path)
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"PAR1"}[damage])
    pd.testing.assert_frame_equal(load(root), expected)
    assert len(reads) == 14
    assert loading._read_cache(path) is not None


def test_folder_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is there all the same."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(loading, "replacing", refuse)
    assert len(load(root)) == 7
    assert not (root / CACHE).exists()


def test_several_writers(root: Path) -> None:
    """Whoever writes last, the file is whole and nothing else is left."""
    expected = load(root, cache=False)
    tables: list[pd.DataFrame] = []

    def work() -> None:
        for i in range(5):
            if i % 2:
                (root / CACHE).unlink(missing_ok=True)
            tables.append(load(root))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tables) == 20
    for table in tables:
        pd.testing.assert_frame_equal(table, expected)
    assert not list(root.glob(".*.tmp"))


# --- what is not a result ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "{}", '{"key": 1}', made().to_json().replace("0.5,", '"half",', 1),
     made().to_json().replace('"n_train": 50', '"n_train": 1e400'),
     made().to_json().replace('"n_train": 50', f'"n_train": {2**70}'),
     made().to_json().replace('"sampler"', '"samples"'),
     made(seconds={"train": 1.0}).to_json().replace('"train": 1.0', '"train": "x"')],
)  # fmt: skip
def test_corrupt_result(root: Path, text: str, reads: list[str]) -> None:
    """Named in one line, left out, and not read again until it changes."""
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text(text)
    for _ in range(2):
        with pytest.warns(UserWarning, match="no readable result in broken; left out") as caught:
            table = load(root)
        assert len(caught) == 1
        assert "\n" not in str(caught[0].message)
        assert caught[0].filename == __file__
        assert len(table) == 7
        assert table.attrs["unreadable"] == [str(root / "broken")]
    assert reads.count("broken") == 1


def test_other_entries(root: Path) -> None:
    """Unfinished runs, files and stray folders are passed over."""
    (root / "unfinished").mkdir()
    (root / "notes.txt").write_text("x")
    (root / "odd" / "result.json").mkdir(parents=True)
    with pytest.warns(UserWarning, match="odd"):
        assert len(load(root)) == 7


def test_nothing_there(tmp_path: Path) -> None:
    """An empty table, or an error for what is no folder."""
    table = load(tmp_path)
    assert len(table) == 0
    assert dict(table.dtypes.astype(str)) == COLUMNS
    with pytest.raises(SettingError, match=r"results: .*none is not accepted; expected a folder"):
        load(tmp_path / "none")


def test_imports() -> None:
    """``fskd.results`` opens without pandas, and loading without torch."""
    code = (
        "import sys, fskd.results as r; assert 'pandas' not in sys.modules;"
        "r.load, r.read_csv_results; import fskd.results.curves;"
        "assert 'pandas' in sys.modules; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert fskd.results.load is load
    assert fskd.results.read_csv_results is read_csv_results
    with pytest.raises(AttributeError, match="lod"):
        fskd.results.lod  # noqa: B018


# --- other tools -------------------------------------------------------------------------------

MAPPING = {"accuracy": "top1", "num": "n_train", "name": "arm"}


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    """Writes a file and reads it."""

    def call(text: str, mapping: dict[str, str] | None = None, **fill: str) -> pd.DataFrame:
        path = tmp_path / "other.csv"
        path.write_text(text)
        return read_csv_results(path, MAPPING if mapping is None else mapping, fill)

    return call


def test_csv(csv: Any) -> None:
    """Their columns under our names, ours as they are, the rest empty."""
    text = "name,num,accuracy,seed,remark\ntheirs,50,0.61,0,x\n theirs ,100,0.7,,y\n"
    table = csv(text, dataset="digits", student="net_small", teacher="net_big")
    assert dict(table.dtypes.astype(str)) == COLUMNS
    assert list(table["arm"]) == list(table["method"]) == ["theirs", "theirs"]
    assert list(table["n_train"]) == [50, 100]
    assert list(table["top1"]) == [0.61, 0.7]
    assert table["seed"][0] == 0
    assert table["seed"].isna()[1]
    assert set(table["dataset"]) == {"digits"}
    assert set(table["role"]) == {"student"}
    assert set(table["source"]) == {"other.csv"}
    assert set(table["split_sha256"]) == {""}
    assert table["nll"].isna().all()


def test_csv_beside_ours(csv: Any, root: Path) -> None:
    """One table; names of other tools' arms are left alone."""
    other = csv("name,num,accuracy\nkd,50,0.6\nkd,50,0.6\n")
    table = combined(load(root), other)
    assert len(table) == 9
    assert dict(table.dtypes.astype(str)) == COLUMNS
    assert list(table["arm"][-2:]) == ["kd", "kd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,num,accuracy\nkd,50,93.1", r"line 2, top1: 93.1 .* share in \[0, 1\] \(percent"),
        ("name,num,accuracy\nkd,50,0.9\nkd,5x,0.9", "line 3, n_train: 5x .* whole number"),
        ("name,num,accuracy\nkd,2.5,0.9", "line 2, n_train: 2.5"),
        ("name,num,accuracy\nkd,-5,0.9", "line 2, n_train: -5"),
        ("name,num,accuracy\nkd,5,", "line 2: top1 is empty"),
        ("name,num,accuracy\n,5,0.1", "line 2: arm is empty"),
        ("name,num\nkd,5", "map: accuracy is not accepted; expected a column of other.csv: name"),
        ("name,num,accuracy,top1\nkd,5,0.1,0.1", "map: top1 .* one source"),
        ("", "not a readable CSV file"),
    ],
)
def test_bad_csv(csv: Any, text: str, message: str) -> None:
    """One line that names the place."""
    with pytest.raises(FskdError, match=message) as caught:
        csv(text)
    assert "\n" not in str(caught.value)


def test_bad_mapping(csv: Any, tmp_path: Path) -> None:
    """Names that we do not have, columns that are needed, files that are not there."""
    text = "name,num,accuracy\nkd,5,0.1"
    with pytest.raises(SettingError, match=r"'top1' .nearest"):
        csv(text, {"accuracy": "top_1"})
    with pytest.raises(SettingError, match="a file with top1, or a column mapped to it"):
        csv(text, {"name": "arm", "num": "n_train"})
    with pytest.raises(SettingError, match=r"map: top1 .* one source"):
        csv(text, top1="0.5")
    with pytest.raises(FskdError, match=r"none\.csv: not a readable"):
        read_csv_results(tmp_path / "none.csv")
    for pair in ("accuracy", "=top1", "accuracy="):
        with pytest.raises(SettingError, match="COLUMN=NAME"):
            parse_mapping([pair])
