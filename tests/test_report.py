"""The command of reports: what it writes, what it refuses, and in which words."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fskd.report import main

sys.path.insert(0, str(Path(__file__).parent / "results"))
from made import made, write
from studies import ARMS, FAILED, HOSTILE, MISSING, write_study

Report = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def written(study: Path) -> Path:
    assert main([str(study)]) == 0
    return study / "report"


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    def call(*options: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(option) for option in options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


class Page(HTMLParser):
    """Tags, texts, ids and links of a page."""

    VOID = ("meta", "br", "input", "link", "img", "hr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the page -----------------------------------------------------------------------------------


def test_files(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        "index.html", "figures", "tables", "tables.md", "tables.tex"
    }  # fmt: skip
    figures = {path.name for path in (written / "figures").iterdir()}
    assert len(figures) == 48
    for path in (written / "figures").iterdir():
        begin = path.read_bytes()[:8]
        assert begin == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else b"<?xml" in begin
    with (written / "tables" / "runs.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 287


def test_page_is_whole_and_alone(written: Path) -> None:
    """Valid nesting, unique ids, every link inside the page, no script, nothing from elsewhere."""
    page = Page(written / "index.html")
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not {"script", "iframe", "link", "img"} & set(page.tags)
    assert "url(#" in page.source
    assert set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(page.ids)
    outside = set(re.findall(r"https?://[^\s\"'<]+", page.source))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_page_names_what_is_absent(written: Path) -> None:
    text = Page(written / "index.html").text
    assert "4 runs are not in these numbers: 1 failed, 1 not finished" in text
    for word in (FAILED, "step 8: the term 'kd' is nan (attempt 2)", "2026-03-01T10:12"):
        assert word in text
    for word in (MISSING, "begun, not finished", "broken", "result.json cannot be read"):
        assert word in text


def test_page_has_provenance(written: Path) -> None:
    text = Page(written / "index.html").text
    for word in ("f" * 64, "2" * 64, "6" * 64, "method.temperature", "8.0", "torch", "net_big"):
        assert word in text
    assert "What they do not show" in text
    assert "protocol fractions" in text


def test_same_results_same_bytes(study: Path, written: Path, tmp_path: Path) -> None:
    """In another process, and without torch."""
    code = (
        "import sys; from fskd.report import main; "
        f"assert main([{str(study)!r}, '--out', {str(tmp_path / 'again')!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    names = sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file())
    assert names == sorted(
        str(p.relative_to(tmp_path / "again"))
        for p in (tmp_path / "again").rglob("*")
        if p.is_file()
    )
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_hostile_names(tmp_path: Path, report: Report) -> None:
    """In HTML, SVG, LaTeX and Markdown a name is a text, whatever it is."""
    runs = [made(m, 50, s, 0.5) for m in ("kd", "at") for s in (0, 1)]
    root = write(tmp_path, *runs)
    names = {run.key: HOSTILE for run in runs if run.method == "at"}
    (root / "evil.arms.json").write_text(json.dumps(names))
    assert report(root, "--title", HOSTILE)[0] == 0
    page = Page(root / "report" / "index.html")
    assert "img" not in page.tags
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 5
    assert r"\input{" not in (root / "report" / "tables.tex").read_text()


def test_options(study: Path, tmp_path: Path, report: Report) -> None:
    options = ["--out", tmp_path / "r", "--baseline", "ce", "--measure", "nll", "--title", "Mine"]
    only = ["--only", "arm=ce,kdplus", "--only", "dataset=digits"]
    code, said, _ = report(study, *options, *only)
    assert code == 0
    assert said.splitlines() == [
        "50 runs, 1 failed, 1 not finished, 1 unreadable", str(tmp_path / "r" / "index.html")
    ]  # fmt: skip
    text = Page(tmp_path / "r" / "index.html").text
    for word in ("Mine", "kdplus minus ce", "lowest mean negative log-likelihood"):
        assert word in text
    assert not re.search(r"\brkd\b", re.sub(r"digits-net_small-rkd-\S+", "", text))
    assert not (study / "report" / "figures" / "nll-3.svg").exists()


def test_one_run(tmp_path: Path, report: Report) -> None:
    code, said, _ = report(write(tmp_path, made("kd", top1=0.5)))
    assert (code, said.splitlines()[0]) == (0, "1 run")
    text = Page(tmp_path / "report" / "index.html").text
    assert "kd alone, mean top-1 accuracy, %: 50.00." in text
    assert "A single seed has no interval" in text


def test_report_again_replaces(tmp_path: Path, report: Report) -> None:
    root = write(tmp_path, made("kd", top1=0.5))
    report(root)
    write(tmp_path, made("kd", seed=1, top1=0.7))
    code, said, _ = report(root)
    assert (code, said.splitlines()[0]) == (0, "2 runs")
    assert "60.00 ± 14.14" in Page(root / "report" / "index.html").text


# --- protocols ----------------------------------------------------------------------------------

PROTOCOL = """
name: small
base: {teacher: {budget: {steps: 20}}, budget: {steps: 6}, data: {fraction: 0.1}}
arms: {plain: {method: kd}, warm: {method: {name: kd, temperature: 8}}}
seeds: 2
"""


def test_runs_of_a_protocol(
    tmp_path: Path, out: Path, command: Callable[..., tuple[int, str, str]], report: Report
) -> None:
    """Named as in the protocol, without a file of names; those without a result are missing."""
    file = tmp_path / "small.yaml"
    file.write_text(PROTOCOL)
    options = ["--steps", "6", "--fraction", "0.1", "--set", "teacher.budget.steps=20"]
    assert command(*options, "--method", "kd", "--seeds", "2", "--quiet")[0] == 0
    assert command(*options, "--method", "ce", "--quiet")[0] == 0
    code, said, _ = report(out, "--protocol", file, "--out", tmp_path / "r", "--baseline", "plain")
    assert (code, said.splitlines()[0]) == (0, "2 runs, 2 missing")
    text = Page(tmp_path / "r" / "index.html").text
    assert "plain alone" in text
    for seed in (0, 1):
        assert f"digits-cnn_tiny-kd-10pct-s{seed}" in text
    assert "warm" in text


# --- results of other tools ---------------------------------------------------------------------


def test_import_is_drawn_beside_ours(tmp_path: Path, report: Report) -> None:
    root = write(tmp_path / "runs", *(made("kd", 50, s, 0.5 + s / 100) for s in (0, 1, 2)))
    other = tmp_path / "other.csv"
    rows = [f"theirs,50,{s},{0.6 + s / 50}" for s in (0, 1, 2)]
    other.write_text("\n".join(["approach,num,seed,acc", *rows]))
    options = ["--map", "approach=arm", "--map", "num=n_train", "--map", "acc=top1"]
    fills = ["dataset=digits", "student=net_small", "teacher=net_big"]
    options += [part for fill in fills for part in ("--fill", fill)]
    code, said, _ = report("import", other, root, *options)
    assert (code, said.splitlines()) == (0, ["3 rows", str(root / "imported" / "other.csv")])
    assert report(root)[0] == 0
    text = Page(root / "report" / "index.html").text
    assert "62.00 ± 2.00" in text
    assert "theirs minus kd" in text
    assert "not known whether the splits are the same" in text
    assert "other.csv" in text


def test_import_option(tmp_path: Path, report: Report) -> None:
    root = write(tmp_path / "runs", made("kd", 50, 0, 0.5))
    other = tmp_path / "other.csv"
    other.write_text("arm,n_train,top1,dataset\ntheirs,50,0.6,digits\n")
    assert report(root, "--import", other)[0] == 0
    assert "theirs" in Page(root / "report" / "index.html").text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--map", "acc=top_1"], ["map: top_1", "'top1' (nearest)"]),
        (["--map", "acc"], ["map: acc", "COLUMN=NAME"]),
        (["--fill", "dataset"], ["map: dataset"]),
        ([], ["map: other.csv", "n_train"]),
    ],
)
def test_import_refuses(
    options: list[str], words: list[str], tmp_path: Path, report: Report
) -> None:
    (tmp_path / "other.csv").write_text("arm,acc\nx,0.5\n")
    code, _, said = report("import", tmp_path / "other.csv", tmp_path / "runs", *options)
    assert code == 2
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "runs").exists()


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--baseline", "kdpluss"], ["baseline: kdpluss", "'kdplus' (nearest)"]),
        (["--measure", "top_1"], ["measure: top_1", "'top1' (nearest)"]),
        (["--only", "arms=kd"], ["only: arms", "'arm' (nearest)"]),
        (["--only", "arm=kdd"], ["only: arm=kdd", "'kd' (nearest)"]),
        (["--only", "kd"], ["only: kd", "COLUMN=VALUE"]),
        (["--protocol", "none.yaml"], ["none.yaml"]),
        (["--import", "none.csv"], ["none.csv", "not a readable CSV"]),
        (["--outt", "x"], ["--outt"]),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], words: list[str], study: Path, report: Report
) -> None:
    code, _, said = report(study, *options)
    assert code == 2
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said


def test_nothing_to_report(tmp_path: Path, report: Report) -> None:
    def said(folder: Path) -> str:
        code, out, said = report(folder)
        assert (code, out, len(said.splitlines())) == (2, "", 1)
        assert not (folder / "report").exists()
        return said

    assert "a folder of run directories" in said(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no finished run" in said(empty)
    (empty / "a").mkdir()
    (empty / "a" / "result.json").write_text("[]")
    assert "no readable result (1 unreadable)" in said(empty)
    (empty / "b").mkdir()
    (empty / "b" / "failed.json").write_text("no JSON")
    assert "1 failed or unfinished" in said(empty)


def test_teachers_alone_are_a_report_of_themselves(tmp_path: Path, report: Report) -> None:
    """Without students that name it, a teacher is a run like any other; with them it is none."""
    root = write(tmp_path, made("ce", 1000, key="t0"), made("kd"))
    assert report(root)[1].startswith("1 run")
    assert report(root, "--only", "role=teacher", "--out", tmp_path / "x")[0] == 2


def test_help_is_quick_and_has_examples() -> None:
    code = "import sys, fskd.report as r; r.main(['--help']); assert 'pandas' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m fskd.report import other.csv" in done.stdout
    assert "--baseline" in done.stdout


def test_arms_of_the_study(written: Path) -> None:
    text = (written / "tables.md").read_text()
    for arm in ARMS:
        assert f"| {arm} |" in text
