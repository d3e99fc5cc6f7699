"""The report in a real Chromium: no network requests, fits a phone, interactive without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NAMES, Browser, browsing, chromium
from made_up import made_up
from test_report import NASTY

from pipeline.evaluate.report.page import render

pytestmark = pytest.mark.skipif(chromium() is None, reason=f"there is no {', '.join(NAMES)} on the path")
TIPS = "[...document.querySelectorAll('.tip')].filter(tip => getComputedStyle(tip).display != 'none')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(made_up("".join(NASTY) + "unbroken" * 40, heads=12, chat=True)), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_without_a_request_or_a_complaint(browser: Browser, page: Path, dark: bool) -> None:
    browser.events.clear()
    browser.open(page, dark=dark)
    asked = [each["request"]["url"] for each in browser.told("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert not browser.told("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert browser.evaluate("document.querySelectorAll('script, form, iframe, object, img[src=x]').length") == 0
    assert browser.evaluate("getComputedStyle(document.body).fontFamily").startswith("system-ui")  # its style holds


@pytest.mark.parametrize("width", [320, 390, 768, 1100, 1920])
def test_nothing_is_wider_than_the_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.evaluate("document.scrollingElement.scrollWidth") == width


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Browser, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(
        text.replace("<main>", "<main><script>window.ran = 1</script><img src='http://x.test/a.png'>")
    )
    browser.open(broken)
    assert browser.evaluate("window.ran") is None
    assert len(browser.told("Log.entryAdded")) >= 2
    browser.events.clear()


def test_pointing_at_a_token_shows_what_was_expected(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate(f"{TIPS}.length") == 0
    browser.evaluate("document.querySelectorAll('.t')[3].scrollIntoView({block: 'center', behavior: 'instant'})")
    box = "document.querySelectorAll('.t label')[3].getClientRects()[0]"
    browser.point(browser.evaluate(f"{box}.left + 3"), browser.evaluate(f"{box}.top + 5"))
    assert browser.evaluate(f"{TIPS}.length") == 1
    shown = browser.evaluate(f"{TIPS}[0].innerText")
    assert "1.20 nats" in shown
    assert all(share in shown for share in ("40.0%", "20.0%", "10.0%", "5.0%", "1.0%"))
    inside = browser.evaluate(
        f"(box => box.left >= 0 && box.right <= innerWidth)({TIPS}[0].getBoundingClientRect())"
    )
    assert inside


@pytest.mark.parametrize("width", [320, 1100])
def test_the_keyboard_walks_over_the_tokens(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.evaluate("document.querySelector('.t input').focus()")
    for _ in range(2):
        browser.press("ArrowRight", 39)
    assert browser.evaluate("document.activeElement.id") == "t-val-3"
    assert browser.evaluate(f"{TIPS}.length") == 1
    assert "0.80 nats" in browser.evaluate(f"{TIPS}[0].innerText")
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.name") == "t-test"  # one stop for the whole text


def test_the_curves_change_their_axis(browser: Browser, page: Path) -> None:
    browser.open(page)
    charts = "[...document.querySelectorAll('#training .charts')]"
    shown = f"{charts}.filter(each => each.offsetHeight).map(each => each.className)"
    assert browser.evaluate(shown) == ["charts by-steps"]
    for name in ("tokens", "time", "steps"):
        browser.evaluate(f"document.querySelector('#axis-{name}').click()")
        assert browser.evaluate(shown) == [f"charts by-{name}"]


def test_pointing_at_a_curve_reads_its_numbers_out(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('.plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = "document.querySelector('.plot').getBoundingClientRect()"
    browser.point(browser.evaluate(f"{box}.right - 2"), browser.evaluate(f"{box}.top + 40"))
    texts = "[...document.querySelectorAll('.readout text')]"
    seen = f"{texts}.filter(text => getComputedStyle(text).visibility == 'visible')"
    assert browser.evaluate(f"{seen}.map(text => text.textContent)") == ["500 steps · validation 3.5 · train 3"]


def test_the_dark_is_dark(browser: Browser, page: Path) -> None:
    colours = {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        names = ("backgroundColor", "color")
        colours[dark] = [browser.evaluate(f"getComputedStyle(document.body).{name}") for name in names]
    assert colours == {
        False: ["rgb(250, 249, 247)", "rgb(29, 36, 48)"],
        True: ["rgb(17, 21, 27)", "rgb(233, 235, 239)"],
    }
