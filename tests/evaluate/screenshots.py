"""Takes the pictures that docs/ holds: `python tests/evaluate/screenshots.py reports/report.html docs`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import Browser, browsing
from PIL import Image

WIDTH = 1100


def main(page: Path, folder: Path) -> None:
    """Writes report.png, report-dark.png and report-phone.png."""
    with tempfile.TemporaryDirectory(prefix="browser-") as home, browsing(Path(home)) as browser:
        browser.open(page, WIDTH, 1330)
        take(browser, folder / "report.png")
        browser.open(page, WIDTH, 900, dark=True)
        browser.evaluate("document.querySelector('#tokens').scrollIntoView({behavior: 'instant'})")
        browser.evaluate("document.querySelectorAll('.tokens .l4 input')[4]?.focus({preventScroll: true})")
        take(browser, folder / "report-dark.png")
        browser.open(page, 390, 844)
        browser.evaluate("document.querySelector('#training').scrollIntoView({behavior: 'instant'})")
        take(browser, folder / "report-phone.png")


def take(browser: Browser, path: Path) -> None:
    """A screenshot, as small as its colours allow."""
    browser.screenshot(path)
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
