"""Debian's chromium, driven by playwright, for the tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
SIZES = ((1280, 800), (390, 844))  # a projector, a phone

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


@contextmanager
def started() -> Iterator[Browser]:
    """The browser. While it is there, asyncio runs nothing in this thread."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@contextmanager
def opened(
    url: str,
    size: tuple[int, int] = SIZES[0],
    scheme: str = "light",
    wait: int = 0,
    browser: Browser | None = None,
) -> Iterator[Page]:
    """A page at ``url`` in a window of that ``size``; ``wait``: seconds that its server may take to come up;
    ``browser``: one that is there already.

    Fails at its end where the page wrote an error to the console or asked for anything from another place than its own.
    """
    with nullcontext(browser) if browser else started() as window:
        page = window.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        errors: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        for left in range(wait, -1, -1):
            try:
                page.goto(url)
                break
            except Error:
                if not left:
                    raise
                page.wait_for_timeout(1000)
        yield page
        page.close()
    assert errors == []
    own = url.split("/")[:3]
    assert [one for one in asked if one.split("/")[:3] != own and not one.startswith("data:")] == []


# What is visible, reaches beyond the window and lies in nothing that scrolls sideways. (The page's own width does not
# tell: gradio cuts off what is too wide.)
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(one => {
    const box = one.getBoundingClientRect();
    if (!box.width || !box.height || box.right <= innerWidth + 1) return false;
    for (let above = one; above; above = above.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(above).overflowX)) return false;
    return getComputedStyle(one).visibility !== 'hidden';
}).map(one => one.tagName + '.' + one.className + ': ' + one.textContent.trim().slice(0, 60))"""


def faults(page: Page) -> list[str]:
    """The elements that are too wide for the window, and what axe-core finds serious or critical for people with
    disabilities."""
    found = Axe().run(page).response["violations"]
    serious = [
        f"{one['id']}: {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    return [*page.evaluate(OVERFLOWING), *serious]
