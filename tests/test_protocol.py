"""Protocols: expansion, arms, modes, mistakes, shipped files, and the command that checks them."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fskd.config import RunConfig
from fskd.data.datasets.base import Extent, load
from fskd.data.manifest import save_split, shipped, split_names
from fskd.data.splits import order_hash
from fskd.errors import FskdError, SettingError
from fskd.methods.base import methods
from fskd.protocol import Protocol, Run, read_protocol
from fskd.protocol.__main__ import main, span
from fskd.protocol.plan import make_plan
from fskd.resolve import resolve, validate
from fskd.results.names import load_names, save_names
from fskd.results.store import Result
from fskd.runs.calibrate import Planner
from fskd.runs.estimate import Cost, _noise, here, stand_in
from fskd.runs.overview import example
from fskd.runs.prepare import Given, prepare
from fskd.runs.ranking import split_name
from fskd.types import Ranking

FOLDER = Path(__file__).parents[1] / "protocols"
FILES = sorted(FOLDER.glob("*.yaml"))


def parse(text: str) -> Protocol:
    """A protocol from YAML in flow style."""
    return validate(Protocol, {"name": "p", **yaml.safe_load(text)})


def keys(protocol: Protocol) -> set[str]:
    return {config.key() for config in protocol.expand()}


def with_pictures(config: RunConfig, root: Path) -> RunConfig:
    """The configuration for a small folder of one's own."""
    for index in range(8):
        (root / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (40, 30), (20 * index, 0, 0))
        picture.save(root / "ab"[index % 2] / f"{index}.png")
    return config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})


def test_pe_has_equally_long_arms_beside_it() -> None:
    """Alternate steps lengthen training by 1/0.3; weight decay is the same for all."""
    (file,) = (file for file in FILES if file.stem == "pe")
    runs = {run.arm: run.config for run in read_protocol(file).runs() if run.config.seed == 0}
    assert {config.optim.weight_decay for config in runs.values()} == {1e-4}
    steps = {arm: prepare(config, Path()).steps for arm, config in runs.items()}
    assert steps.pop("kd") == steps.pop("kdplus") == 800
    assert steps.keys() == {"kd_longer", "kdplus_longer", "mixpatch", "pe"}
    assert set(steps.values()) == {2667}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shipped_protocols(file: Path, tmp_path: Path) -> None:
    protocol = read_protocol(file)
    runs = protocol.runs()
    assert protocol.name == file.stem
    assert protocol.mode is not None
    assert protocol.description
    assert len({run.config.key() for run in runs}) == len(runs)
    assert runs == protocol.runs() == read_protocol(file).runs()
    assert file.read_text().startswith("# ")
    assert re.search(rf"python -m fskd\.(run|sweep) protocols/{file.name}", file.read_text())
    for config in {run.arm: run.config for run in runs}.values():
        if config.data.episodic is not None:
            pytest.importorskip("learn2learn")
        if config.data.name == "folder":
            config = with_pictures(config, tmp_path / "photos")
        if here(config):
            key = prepare(config, tmp_path).config.key()
            assert key == prepare(config, tmp_path).config.key() != config.key()
        else:
            assert stand_in(config).data is not None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_arm_has_the_same_seeds_and_data(file: Path) -> None:
    tasks: dict[str, set[tuple[Any, ...]]] = {}
    for arm, config in read_protocol(file).runs():
        assert config.data.split_seed == config.seed
        data = config.data
        task = (data.fraction, data.shots, data.n, config.student, config.seed)
        tasks.setdefault(arm, set()).add(task)
    assert len({frozenset(found) for found in tasks.values()}) == 1


SHUFFLED = """
mode: fixed_updates
base: {data: {name: digits}, budget: {steps: 9}, optim: {lr: 0.1, momentum: 0.8}}
axes:
  fraction: [0.1, 0.5]
  pair: [[cnn_small, cnn_tiny], {student: cnn_medium, teacher: {name: cnn_small, seed: 5}}]
  method.temperature: [2, 4]
arms:
  kd: {method: kd}
  warm: {method: {name: kdplus, ce_weight: 0}, data: {augment: {flip: true}}}
seeds: [3, 1]
"""


def shuffle(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list):
        return [shuffle(item, rng) for item in value]
    if not isinstance(value, dict):
        return value
    items = [(name, shuffle(item, rng)) for name, item in value.items()]
    rng.shuffle(items)
    return dict(items)


@settings(max_examples=15, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_the_order_in_the_file(rng: random.Random) -> None:
    raw = yaml.safe_load(SHUFFLED)
    runs = validate(Protocol, {"name": "p", **raw}).runs()
    other = validate(Protocol, {"name": "p", **shuffle(raw, rng)}).runs()
    assert len(runs) == 2 * 2 * 2 * 2 * 2
    names = {run.config.key(): set(run.arm.split(", ")) for run in runs}
    assert {run.config.key(): set(run.arm.split(", ")) for run in other} == names


def test_order_of_runs() -> None:
    protocol = parse("{axes: {shots: [1, 2]}, arms: {b: {method: kd}, a: {method: ce}}, seeds: 2}")
    found = [(run.config.data.shots, run.arm, run.config.seed) for run in protocol.runs()]
    assert found == [(n, arm, seed) for n in (1, 2) for arm in "ba" for seed in (0, 1)]


def test_arms_differ_in_several_settings() -> None:
    protocol = parse(
        "{base: {method: {name: kd, temperature: 2}, budget: {steps: 4}}, arms: {plain: {},"
        " longer: {budget: {steps: 8}}, by_epochs: {budget: {epochs: 3}}, other: {method: at}}}"
    )
    found = {run.arm: run.config for run in protocol.runs()}
    assert [c.budget.steps for c in found.values()] == [4, 8, None, 4]
    assert found["other"].method.name == "at"
    kd = resolve({"method": {"name": "kd", "temperature": 2}, "budget": {"steps": 8}})
    assert found["longer"] == kd


@pytest.mark.parametrize(
    ("text", "arms"),
    [
        ("{axes: {method: [ce, kd]}}", ["ce", "kd"]),
        ("{base: {method: kd}, axes: {fraction: [0.1, 0.2]}}", ["kd", "kd"]),
        ("{base: {method: at}, axes: {method.weight: [1, 2]}}", ["method.weight=1",
                                                                  "method.weight=2"]),
        ("{axes: {sampler: [stratified, uniform], n: [90]}, arms: {k: {method: kd}}}",
         ["k, stratified", "k, uniform"]),
        ("{axes: {generator: [null, {name: mixup, share: 0.25}]}}",
         ["generator=null", "generator={name: mixup, share: 0.25}"]),
    ],
)  # fmt: skip
def test_names_of_arms(text: str, arms: list[str]) -> None:
    assert [run.arm for run in parse(text).runs()] == arms


def test_pair_sets_teacher_and_student() -> None:
    text = "{axes: {pair: [[cnn_small, cnn_tiny], [cnn_medium, cnn_tiny]]}, arms: {%s}}"
    found = parse(text % "kd: {method: kd}").expand()
    assert [(c.teacher and c.teacher.name, c.student) for c in found] == [
        ("cnn_small", "cnn_tiny"), ("cnn_medium", "cnn_tiny"),
    ]  # fmt: skip
    # Without a teacher both pairs are the same run.
    assert len(parse(text % "ce: {method: ce}").expand()) == 1


def test_overrides() -> None:
    protocol = parse("{arms: {a: {method: kd}, b: {method: ce}}, seeds: 4}")
    assert [c.seed for c in protocol.expand({"seed": 9})] == [9, 9]
    assert {c.optim.lr for c in protocol.expand({"optim": {"lr": 0.5}})} == {0.5}
    for layer in ({"method": "at"}, {"method": {"name": "kd"}}):
        with pytest.raises(SettingError, match=r"method\.name: given .* the arm 'a' of p sets it"):
            protocol.expand(layer)
    updates = parse("{mode: fixed_updates, base: {budget: {steps: 5}}}")
    with pytest.raises(SettingError, match=r"budget\.epochs: 3 .* mode is fixed_updates"):
        updates.expand({"budget": {"epochs": 3}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{axs: {seed: [0]}}", ["axs", "'axes' (nearest)"]),
        ("{mode: fixed_update}", ["mode", "'fixed_updates' or 'fixed_epochs'"]),
        ("{base: {dat: digits}}", ["dat", "'data' (nearest)"]),
        ("{axes: {fractoin: [0.1]}}", ["fractoin", "an unknown setting"]),
        ("{axes: {data.fractoin: [0.1]}}", ["data.fractoin", "'fraction' (nearest)"]),
        ("{axes: {method: [kdpluss]}}", ["'kdpluss'", "'kdplus' (nearest)"]),
        ("{arms: {a: {methd: kd}}}", ["methd", "'method' (nearest)"]),
        ("{arms: {'a/b': {}}}", ["arms.a/b", "pattern"]),
        ("{arms: [kd]}", ["arms", "dictionary"]),
        ("{axes: {seed: []}}", ["axes.seed", "at least 1 item"]),
        ("{axes: {seed: 3}}", ["axes.seed", "3", "list"]),
        ("{seeds: 0}", ["seeds", "0", "from 1 to 1000"]),
        ("{seeds: 100000}", ["seeds", "100000"]),
        ("{seeds: []}", ["seeds", "at least 1 item"]),
        ("{seeds: [1, 1]}", ["seeds", "no seed comes twice"]),
        ("{seeds: [-1]}", ["seeds.0", "-1"]),
        ("{axes: {fraction: [0.5, 0.1, 0.50]}}", ["axes.data.fraction", "0.5 twice"]),
        ("{axes: {method: [kd, {name: kd}]}}", ["axes.method", "twice"]),
        ("{axes: {pair: [[a, b], {teacher: a, student: b}]}}", ["axes.pair", "twice"]),
        ("{axes: {pair: [[a]]}}", ["axes.pair", "[teacher, student]"]),
        ("{axes: {pair: [{teacher: a}]}}", ["axes.pair", "[teacher, student]"]),
        ("{axes: {fraction: [0.1], data.fraction: [0.2]}}", ["an axis comes twice"]),
        ("{axes: {fraction: [0.1], shots: [3]}}", ["axes.data.shots", "axes.data.fraction"]),
        ("{base: {data: {shots: 3}}, axes: {fraction: [0.1]}}", ["data.fraction", "base"]),
        ("{base: {method: kd}, axes: {method: [ce, kd]}}", ["axes.method", "method.name", "base"]),
        ("{arms: {a: {method: kd}}, axes: {method: [ce]}}", ["axes.method", "arms.a"]),
        ("{arms: {a: {seed: 3}}, seeds: 2}", ["seeds", "arms.a"]),
        ("{axes: {seed: [3]}, seeds: 2}", ["seeds", "axes.seed"]),
        ("{base: {student: cnn_tiny}, axes: {pair: [[a, b]]}}", ["axes.pair", "student", "base"]),
        ("{chain: [a, b], axes: {pair: [[a, b]]}}", ["chain", "axes.pair"]),
        ("{chain: [a, b], base: {teacher: a}}", ["chain", "teacher.name", "base"]),
        ("{arms: {a: {method: kd}, b: {method: {name: kd}}}}", ["arms.a and arms.b", "the same"]),
        ("{mode: fixed_updates, base: {budget: {epochs: 3}}}", ["base, budget.epochs"]),
        ("{mode: fixed_updates, arms: {a: {budget: {epochs: 3}}}}", ["arms.a, budget.epochs"]),
        ("{mode: fixed_epochs, axes: {budget.steps: [3]}}", ["axes.budget.steps, budget.steps"]),
        ("{mode: fixed_epochs}", ["budget.steps: 800", "budget.epochs"]),
        (f"{{axes: {{n: {list(range(1, 31))}}}, seeds: 1000}}", ["30000 runs"]),
        ("{name: ../x}", ["name", "pattern"]),
        ("{base: {data: {fraction: 0.5, shots: 1}}}", ["fraction and shots"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(text: str, words: list[str]) -> None:
    with pytest.raises(FskdError) as caught:
        parse(text).runs()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "text",
    [
        "axes: {seed: !!python/tuple [1]}",
        "axes: {seed: !!set {1}}",
        "base: &b {seed: 1}\narms: {a: *b}",
        "arms: {a: {seed: 1}, a: {seed: 2}}",
        "description: " + "x" * 1_000_001,
        "method: kd\nseeds: 3",
    ],
)
def test_files_that_are_refused(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    code, out, said = check(capsys, tmp_path / "bad.yaml", FOLDER / "smoke.yaml")
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "bad.yaml" in said
    # The others are checked all the same.
    assert out.startswith("smoke: 3 runs")


def check(capsys: Any, *files: Path, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """``check`` without calibration: (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main(["check", "--no-calibrate", *options, *map(str, files)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_class_without_examples_shows_at_the_check(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "small.yaml").write_text("axes: {fraction: [0.001, 0.5]}\n")
    code, out, said = check(capsys, tmp_path / "small.yaml")
    assert (code, out) == (2, "")
    assert "small.yaml" in said
    assert "none of class" in said


def test_usage(capsys: Any) -> None:
    assert main(["check"]) == 2
    assert main(["chek"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert main(["check", "absent.yaml"]) == 2


def test_absent_data(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "{base: {data: cifar10, student: resnet8, teacher: resnet14, budget: {steps: 10},"
        " method: kd}, axes: {shots: [3]}}"
    )
    code, out, _ = check(capsys, tmp_path / "c.yaml")
    assert code == 0
    assert "cifar10: not on this machine" in out
    assert "finished" not in out
    code, _, said = check(capsys, tmp_path / "c.yaml", options=("--data-root", "/nowhere"))
    assert code == 2
    assert "/nowhere" in said
    root = stand_in(resolve({"data": "cifar10"})).data
    assert root is not None
    assert [len(part) for part in root] == [50_000, 10_000]


COUNTED = {
    "ce": "{method: ce}",
    "kd": "{method: kd}",
    "short": "{method: kd, budget: {steps: 1}}",
    "views": "{method: kd, data: {augment: {flip: true}}}",
    "kdplus": "{method: kdplus}",
    "generated": "{method: kdplus, generator: {name: mixup, share: 1}}",
    "alternate": "{method: kdplus, generator: {name: mixup, when: alternate}, budget: {steps: 40}}",
    "features": "{method: at}",
    "fsp": "{method: fsp, student: cnn_small}",
    "sskd": "{method: sskd}",
    "dml": "{method: dml}",
}


def test_counts_are_those_of_the_runs(command: Any, out: Path, tmp_path: Path) -> None:
    """What is foreseen is what the runs record."""
    arms = ", ".join(f"{name}: {layer}" for name, layer in COUNTED.items())
    file = tmp_path / "counted.yaml"
    file.write_text(
        "base: {data: {shots: 4}, budget: {steps: 6}, optim: {batch_size: 16},"
        f" teacher: {{budget: {{steps: 20}}}}}}\narms: {{{arms}}}\n"
    )
    runs = read_protocol(file).runs()
    planner = Planner()
    before = make_plan(runs, planner, out)
    assert before.finished == 0
    assert before.seconds is None
    code, table, said = command(str(file), "--quiet")
    assert (code, said) == (0, "")
    assert set(COUNTED) <= set(table.partition("paired")[0].split())
    assert "paired difference ce - kd" in table  # of many arms, all from one
    names = load_names(out, "counted")
    assert sorted(names.values()) == sorted(COUNTED)
    after = make_plan(runs, planner, out)
    assert (after.finished, after.teachers) == (len(runs), 0)
    for path in out.glob("*/result.json"):
        result = Result.from_json(path.read_text())
        if (arm := names.get(result.key)) is None:
            continue
        config = next(run.config for run in runs if run.arm == arm)
        expected = planner.cost(config)
        if arm == "alternate":
            assert expected.teacher_queries == 40 + 20 * 16
            assert abs(result.teacher_queries - expected.teacher_queries) <= 12 * 16
            expected = expected._replace(teacher_queries=result.teacher_queries)
        got = Cost(result.n_train, result.steps, result.student_rows, result.teacher_queries)
        assert got == expected, arm


def test_a_teacher_that_only_chooses_is_counted(tmp_path: Path) -> None:
    """Unless a split file has the order; and a method that asks it needs it in any case."""
    layer = {"method": "ce", "data": {"sampler": "kcenter", "shots": 2}}
    config = resolve(layer, {"data": {"splits": "none"}})
    assert make_plan([Run("ce", config)], Planner(), tmp_path).teachers == 1
    name, order = "digits/kcenter-seed0.npz", torch.arange(1198)
    train = load("digits").train
    settings = config.data.sampler.parts[0][1].model_dump()
    about = ("digits", "kcenter", settings, 0, order, train.fingerprint)
    save_split(tmp_path, name, Ranking(*about, order_hash(order)), "", force=False)
    filed = {"data": {"splits": str(tmp_path), "shots": None, "n": 100}}
    plans = {m: resolve(layer, filed, {"method": m}) for m in ("ce", "kd")}
    assert [
        make_plan([Run(name, config)], Planner(), tmp_path).teachers
        for name, config in plans.items()
    ] == [0, 1]


def test_noise_has_no_split_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the data are absent, the files that are shipped for them do not matter."""
    extent = Extent(1000, 500, 10, (1, 28, 28))
    monkeypatch.setattr("fskd.runs.calibrate.stand_in", lambda _: Given(data=_noise(extent)))
    config = resolve({"data": {"name": "fashion_mnist", "shots": 4}, "method": "kd"})
    assert split_name(config.data) in split_names(shipped())
    assert Planner().cost(config).n_train == 40


def test_unequal_arms_are_marked(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "marks.yaml").write_text(
        "{base: {data: {shots: 4}, budget: {steps: 10}}, arms: {ce: {method: ce},"
        " kd: {method: kd}, hot: {method: {name: kd, temperature: 9}},"
        " long: {method: kd, budget: {steps: 20}}, plus: {method: kdplus}}, seeds: 2}"
    )
    code, out, _ = check(capsys, tmp_path / "marks.yaml")
    assert code == 0
    assert "marks: 10 runs, 0 finished" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:7]}
    assert rows["ce"] == ["2", "10", "640", "0", "-"]
    assert rows["kd"] == rows["hot"] == ["2", "10", "640", "40", "-"]
    assert rows["long"] == ["2", "20*", "1,280*", "40", "-"]
    assert rows["plus"] == ["2", "10", "640", "360*", "-"]
    assert "* unlike most arms" in out


@pytest.mark.slow
def test_time_is_measured_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fskd.protocol", "check", str(FOLDER / "chain_ta.yaml"),
         "--out", str(tmp_path / "runs"), "--device", "cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "on one process, 2 teachers included (steps timed on the data, cpu)" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_more_steps_take_longer() -> None:
    from fskd.config import Runtime
    from fskd.train.devices import launch

    planner = Planner(launch(Runtime(device="cpu")))
    base = {"method": "kd", "data": {"shots": 3}}
    short, long = (resolve(base, {"budget": {"steps": n}}) for n in (100, 10_000))
    assert planner.seconds(long) > 20 * (planner.seconds(short) - 0.4) > 0
    assert planner.seconds(long) > planner.seconds(short)
    with pytest.raises(ValueError, match="fabric"):
        Planner().seconds(short)


def test_spans_rise() -> None:
    assert span(0) == "nothing"
    assert [span(s).split()[-1] for s in (5, 60, 600, 8000, 3e5)] == ["s", "s", "min", "h", "days"]


def test_names_of_arms_are_kept(tmp_path: Path) -> None:
    save_names(tmp_path, "p", {"k1": "kd"})
    save_names(tmp_path, "p", {"k2": "ce"})
    save_names(tmp_path, "q", {"k1": "other"})
    assert load_names(tmp_path, "p") == {"k1": "kd", "k2": "ce"}
    (tmp_path / "p.arms.json").write_text("[1]")
    with pytest.raises(FskdError, match="may be deleted"):
        load_names(tmp_path, "p")


def test_reading_a_protocol_needs_no_training_code() -> None:
    code = (
        "import sys, fskd.protocol; "
        "assert not {'lightning_fabric', 'fskd.train'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_methods_can_be_foreseen() -> None:
    planner = Planner()
    for name in methods.names():
        counts = planner.cost(resolve(example(name)))
        assert counts.n_train == 20
        assert counts.student_rows >= 0 <= counts.teacher_queries


def test_settings_alone_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("method: kd\nseed: 4\n")
    (config,) = read_protocol(tmp_path / "one.yaml").expand()
    assert isinstance(config, RunConfig)
    assert (config.method.name, config.seed) == ("kd", 4)
