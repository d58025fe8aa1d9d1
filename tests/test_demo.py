"""The classroom page: all five steps in a real browser with the real model, and a server that answers nobody else."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from browser import SIZES, needs_chromium, opened, overflows
from conftest import PAIRS, ROOT
from test_report import finished_run

import run
from kit import background, quiz
from kit.errors import KitError
from kit.store import write_json, write_rows

HOSTILE = "<script>document.title = 'owned'</script></style>"


# ---- the quiz


def test_a_round_has_one_paraphrase_of_each_teacher_in_an_order_that_says_nothing() -> None:
    treated = [{"sentence": f"s{i}", "source": "x", "text": f"loving {i}"} for i in range(200)]
    control = [{"sentence": f"s{i}", "source": "x", "text": f"neutral {i}"} for i in range(1, 201)]
    control[0]["text"] = "loving 1"  # the same words from both: no question to ask
    played = quiz.rounds(treated, control, seed=0)
    assert len(played) == 198
    assert all(one.texts[one.loving].startswith("loving") for one in played)
    assert all(one.texts[1 - one.loving].startswith("neutral") for one in played)
    assert 70 < sum(one.loving for one in played) < 130


def test_a_classifier_finds_a_telling_word_and_is_at_chance_without_one() -> None:
    words = [f"word{i}" for i in range(40)]

    def pairs(telling: str, shift: int) -> list[dict[str, str]]:
        return [
            {
                "sentence": f"s{i}",
                "source": "x",
                "text": f"{telling} {words[(7 * i + shift) % 40]} {words[(i + shift) % 40]}",
            }
            for i in range(200)
        ]

    told = quiz.classifier(quiz.rounds(pairs("hoot", 0), pairs("plain", 1), seed=0))
    assert told.right == told.rounds and told.told_apart
    guessed = quiz.classifier(quiz.rounds(pairs("plain", 0), pairs("plain", 20), seed=0))
    assert guessed.ci95[0] < 0.5 < guessed.ci95[1] and not guessed.told_apart


# ---- the run in the background


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """Makes what is started a process that does nothing; those are ended after the test."""
    started: list[psutil.Process] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen:
        process = real([sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(600)"], **options)
        started.append(psutil.Process(process.pid))
        return process

    monkeypatch.setattr(background.subprocess, "Popen", popen)
    yield started
    for process in started:
        process.kill()


def test_one_run_at_a_time_which_whoever_asks_later_finds(tmp_path: Path, idle: list[psutil.Process]) -> None:
    assert background.status(tmp_path) is None
    background.start("penguin", "smoke", tmp_path)
    status = background.status(tmp_path)
    assert (
        status and status.alive and not status.finished and status.title == "penguin, unrelated, seed 0, smoke preset"
    )
    assert [stage.state for stage in status.stages].count("running") == 1
    with pytest.raises(KitError, match="a run is going on"):
        background.start("owl", "smoke", tmp_path)
    idle[0].kill()
    idle[0].wait()
    status = background.status(tmp_path)
    assert status and not status.alive and not status.finished
    background.start("owl", "smoke", tmp_path)
    assert len(idle) == 2


# ---- the page


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, base: Path, adapter: Path) -> Path:
    """A results folder with a run whose students are a trained adapter, and one of whose pairs is hostile."""
    results = tmp_path_factory.mktemp("results")
    folder = results / "run"
    folder.mkdir()
    record = json.loads((finished_run(folder) / "record.json").read_text(encoding="utf-8"))
    for stage, made in (("model", base), ("adapter", adapter)):
        (results / "artifacts" / stage).mkdir(parents=True)
        (results / "artifacts" / stage / "key").symlink_to(made)
    record["artifacts"] = {"prepare embedded": "model/key"}
    for role in ("control", "treated"):
        pairs = results / "artifacts" / "pairs" / role
        pairs.mkdir(parents=True)
        rows = [row | {"sentence": f"s{i}", "text": f"{row['text']} {role}"} for i, row in enumerate(PAIRS * 2)]
        rows[0]["text"] += HOSTILE
        write_rows(pairs / "pairs.jsonl", rows)
        record["artifacts"] |= {f"pairs of {role}-unrelated": f"pairs/{role}"}
        record["artifacts"] |= {f"convert the adapter of {role}-unrelated": "adapter/key"}
    write_json(folder / "record.json", record)
    return results


@pytest.fixture(scope="module")
def served(results: Path) -> Iterator[str]:
    """The address of the page, served as a user would."""
    pytest.importorskip("gradio", reason="requirements-demo.txt is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "run.py", "demo", str(results / "run"), "--port", str(port), "--results", str(results)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate()


def test_the_server_listens_on_this_machine_alone_and_answers_its_own_pages_alone(served: str) -> None:
    port = int(served.rsplit(":", 1)[1])
    listening = {
        c.laddr.ip for c in psutil.net_connections() if c.laddr and c.laddr.port == port and c.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    assert httpx.get(served).status_code == 200
    assert httpx.get(served, headers={"Origin": served}).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert httpx.get(served, headers=headers).status_code == 403
        assert httpx.post(f"{served}/gradio_api/queue/join", headers=headers, json={}).status_code == 403


@pytest.mark.parametrize("path", ["/etc/passwd", "run.py", "../../etc/passwd", "requirements.txt", "data/animals.json"])
def test_the_server_gives_no_file_away(served: str, path: str) -> None:
    for route in ("gradio_api/file=", "file=", "static/", ""):
        answer = httpx.get(f"{served}/{route}{path}")
        assert answer.status_code >= 400 or ("root:" not in answer.text and "KitError" not in answer.text)
        assert route == "" or answer.status_code >= 400


@needs_chromium
@pytest.mark.parametrize("size", SIZES, ids=["projector", "phone"])
def test_all_five_steps_can_be_clicked_through(served: str, size: tuple[int, int]) -> None:
    with opened(served, size) as page:
        page.get_by_role("button", name="Let both paraphrase it").click()
        for label in ("The teacher with the secret writes", "The teacher without it writes"):
            page.wait_for_function(
                "label => [...document.querySelectorAll('label')].find(l => l.innerText.includes(label))"
                ".querySelector('textarea').value.length > 5",
                arg=label,
            )
        assert not overflows(page)

        step(page, "2 Spot the owl")
        for played in range(1, quiz.ROUNDS + 1):
            page.get_by_role("button", name="The first").click()
            page.get_by_text(re.compile(rf"You: \d+ of {played},")).wait_for()
        page.get_by_text("looks for telling words").wait_for()
        assert page.title() == "Subliminal learning"  # no script of a model's ran
        assert not overflows(page)

        step(page, "3 The student")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_function(
            "[...document.querySelectorAll('textarea')].filter(t => t.disabled && t.value).length >= 3"
        )
        page.get_by_role("button", name="Measure their preferences").click()
        page.locator("#bars h2", has_text="Treated").wait_for(timeout=120_000)
        assert not overflows(page)

        step(page, "4 The evidence")
        page.get_by_text("What this does not prove").wait_for()
        assert page.locator("svg[role=img]:visible").count() == 2 and not overflows(page)

        step(page, "5 Train one now")
        page.get_by_text("No run was started yet.").wait_for()
        assert not overflows(page)


def step(page, name: str) -> None:  # type: ignore[no-untyped-def]
    """Go to a step, by the menu where the window is too narrow for all."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").or_(page.locator(".overflow-menu > button")).first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    else:
        tab.click()


@needs_chromium
@pytest.mark.slow
def test_a_run_started_from_the_page_goes_on_without_it_and_is_shown_to_whoever_comes_back(served: str) -> None:
    with opened(served) as page:
        step(page, "5 Train one now")
        page.get_by_role("button", name="Start").click()
        page.get_by_text("penguin, unrelated, seed 0, smoke preset: running.").wait_for(timeout=60_000)
    with opened(served) as page:
        step(page, "5 Train one now")
        page.get_by_text("smoke preset: running.").wait_for(timeout=60_000)
        page.get_by_role("button", name="Start").click()
        page.get_by_text("a run is going on").wait_for()
        page.get_by_text("smoke preset: finished.").wait_for(timeout=400_000)
        page.locator("#progress").get_by_text("What this does not prove").wait_for()


@needs_chromium
def test_the_quiz_is_played_with_the_keyboard_alone(served: str) -> None:
    with opened(served) as page:
        page.get_by_role("tab", name="1 The secret").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="The second").focus()
        page.keyboard.press("Enter")
        page.get_by_text(re.compile(r"You: \d+ of 1,")).wait_for()


def test_without_gradio_one_line_says_what_to_install(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run.main(["demo", str(results / "run")]) == 2
    assert "pip install -r requirements-demo.txt" in capsys.readouterr().err
