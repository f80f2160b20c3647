"""The system's Chromium for tests of the page: one browser a module, and whatever a page says or asks for is noted."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PICTURES = Path(__file__).parents[1] / "output"  # for people to look at; not compared with anything


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    if PATH is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        arguments = [f"--{name}" for name in [*ARGUMENTS, "no-first-run"]]
        launched = running.chromium.launch(executable_path=PATH, args=arguments)
        yield launched
        launched.close()


def watch(page: Any, said: list[str]) -> None:
    """Note in ``said`` whatever a page says on its console, throws, asks a person or asks of a network."""
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"thrown: {error}"))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: None if is_local(request.url) else said.append(f"request: {request.url}"))


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))
