"""The page in headless Chromium: nothing on the console, all figures, widths, arms on and off."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fskd.report import main

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "results"))
from browser import Browser, find_chromium
from studies import write_study

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_study(tmp_path_factory.mktemp("study"))
    assert main([str(root)]) == 0
    return root / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser(PROGRAM or "")
    yield made
    made.close()


def visible(browser: Browser, selector: str) -> list[bool]:
    """For every element whether any of it is drawn."""
    return browser.look(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {{"
        " const r = e.getBoundingClientRect(); return r.width + r.height > 0; })"
    )


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("width", WIDTHS)
def test_quiet_and_complete(browser: Browser, page: Path, width: int, scripts: bool) -> None:
    browser.open(page, width, scripts=scripts)
    figures = browser.look(
        "[...document.querySelectorAll('svg.figure')].map(e => { const r ="
        " e.getBoundingClientRect(); return [e.id, r.width, r.height, e.querySelectorAll('path')"
        ".length]; })"
    )
    assert len(figures) == 24
    assert {name for name, *_ in figures} >= {"top1-1", "paired-2", "equivalence-1", "nll-2"}
    for name, wide, high, paths in figures:
        assert min(wide, high) > 150, name
        assert wide <= width
        assert paths > 10
    assert all(visible(browser, "svg.figure .arm, main section > h2, #shown li, #not-shown li"))
    assert browser.look("document.documentElement.scrollWidth") <= width
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out(browser: Browser, page: Path, width: int) -> None:
    """Only tables and code, which scroll by themselves, may be wider than the page."""
    browser.open(page, width)
    outside = browser.look(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("width", WIDTHS)
def test_arms_go_and_come(browser: Browser, page: Path, width: int, scripts: bool) -> None:
    """A click takes an arm out of all figures and tables, without any script."""
    browser.open(page, width, scripts=scripts)
    number = browser.look(
        "[...document.querySelectorAll('fieldset label')].findIndex("
        "e => e.textContent.trim() === 'kdplus')"
    )
    mine, others = f"#top1-1 .arm{number}", f"#top1-1 .arm:not(.arm{number})"
    assert len(visible(browser, mine)) >= 4
    assert all(visible(browser, mine))
    browser.click(f"#show{number}")
    assert not any(visible(browser, f".arm{number}"))
    assert all(visible(browser, others))
    browser.click(f"#show{number}")
    assert all(visible(browser, mine))
    assert browser.errors == []


def test_dark_mode_changes_ink_and_paper(browser: Browser, page: Path) -> None:
    def colours(scheme: str) -> list[str]:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        browser.open(page, 1280)
        return browser.look(
            "[getComputedStyle(document.documentElement).backgroundColor,"
            " getComputedStyle(document.querySelector('#top1-1 text')).fill,"
            " [...document.querySelectorAll('#top1-1 .arm1 path')].map(e =>"
            " getComputedStyle(e).stroke).find(colour => colour !== 'none')]"
        )

    light, dark = colours("light"), colours("dark")
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert light == ["rgb(255, 255, 255)", "rgb(31, 35, 40)", "rgb(0, 114, 178)"]
    assert dark == ["rgb(15, 20, 25)", "rgb(230, 237, 243)", "rgb(74, 168, 224)"]


def test_opens_within_a_second(browser: Browser, page: Path) -> None:
    """Parsed and laid out; the best of three, since other work may be going on."""
    times = []
    for _ in range(3):
        browser.open(page, 1280)
        times.append(
            browser.look("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        )
    assert min(times) < 1000


def test_screenshot(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, 400)
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
