"""`make picture`: a picture of a sweep's report page, for the README. Needs playwright (extra dev) and a Chromium."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 1180  # CSS pixels: the head of the page, the table and the first charts
MAX_BYTES = 300_000


def take_picture(page: Path, picture: Path) -> None:
    """Open ``page`` in Chromium and save its upper part as the PNG file ``picture``."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.absolute().as_uri())
        tab.wait_for_timeout(1500)  # milliseconds, until the charts are drawn
        picture.parent.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=picture)
        browser.close()


def main() -> None:
    page, picture = Path(sys.argv[1]), Path(sys.argv[2])
    take_picture(page, picture)
    size = picture.stat().st_size
    print(f"{picture}: {size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"{picture} has {size:,} bytes; at most {MAX_BYTES:,} are allowed")


if __name__ == "__main__":
    main()
