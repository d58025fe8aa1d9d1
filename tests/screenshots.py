"""Screenshots of a run's page, of every step of the classroom page and of the class's vote, for the README.

python tests/screenshots.py results/<run> results/reference/demonstration/screenshots
"""

import re
import subprocess
import sys
from pathlib import Path

from browser import SIZES, opened, started
from playwright.sync_api import Page

PORT = 7869
STEPS = ("1 The secret", "2 Spot", "3 The student", "4 The evidence", "5 Train one now")


def report(run: Path, out: Path) -> None:
    """The run's page on a projector, light and dark, and on a phone."""
    projector, phone = SIZES
    for name, size, scheme in (("light", projector, "light"), ("dark", projector, "dark"), ("phone", phone, "light")):
        with opened((run / "report.html").resolve().as_uri(), size, scheme) as page:
            page.screenshot(path=out / f"report-{name}.png")


def demo(run: Path, out: Path) -> None:
    """The five steps, each after its button was pressed, and the vote on projector and phone; no run is started."""
    command = ["run.py", "demo", str(run), "--port", str(PORT), "--host", "0.0.0.0"]
    server = subprocess.Popen([sys.executable, *command])
    try:
        with opened(f"http://127.0.0.1:{PORT}", wait=120) as page:
            page.add_style_tag(content="#steps { position: static !important; }")  # it would cover what is taken
            for number, name in enumerate(STEPS, start=1):
                page.get_by_role("link", name=name).click()
                press(page, number)
                page.locator(f"#step-{number}").screenshot(path=out / f"demo-{number}.png")
        vote(f"http://127.0.0.1:{PORT}", out)
    finally:
        server.terminate()
        server.wait()


def vote(url: str, out: Path) -> None:
    """A round on the projector and on a phone, after a vote, and with the answer."""
    with started() as browser, opened(f"{url}/class", browser=browser) as projector:
        (path,) = re.findall(r"/vote/\w+", projector.locator("aside").inner_text())
        with opened(url + path, SIZES[1], browser=browser) as phone:
            phone.locator(".choice").first.click()
            phone.get_by_text("Your vote is counted.").wait_for()
            projector.get_by_text("1 voted").wait_for()
            projector.screenshot(path=out / "vote-projector.png")
            phone.screenshot(path=out / "vote-phone.png")


def press(page: Page, number: int) -> None:
    """What a class would press in a step, and the end of what follows."""
    if number == 1:
        page.get_by_role("button", name="Let both paraphrase it").click()
    elif number == 2:
        page.get_by_role("button", name="The first").click()
        page.get_by_text(re.compile(r"You: \d of 1,")).wait_for()
    elif number == 3:
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="Let each finish it 50 times").click()
        page.get_by_role("button", name="Measure their preferences").click()
        page.locator("#bars h2", has_text="Treated").wait_for(timeout=120_000)
    page.wait_for_timeout(15_000 if number in (1, 3) else 1_000)


if __name__ == "__main__":
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    report(folder, target)
    demo(folder, target)
