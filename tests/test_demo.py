"""The classroom page: all five steps in a real browser, and a server that answers nobody else."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from browser import SIZES, needs_chromium, opened, overflowing
from conftest import PAIRS, ROOT
from playwright.sync_api import Page, expect
from test_report import finished_run

import run
from kit import KitError, demo, report
from kit.demo import OwnPagesOnly, listen
from kit.experiment_folder import RunFolder
from kit.inspection_quiz import ROUNDS, Game, make_rounds, score
from kit.store import write_json, write_rows

HOSTILE = "<script>document.title = 'owned'</script></style>"


# ---- the quiz


def test_a_round_has_one_paraphrase_of_each_teacher_in_an_order_that_says_nothing() -> None:
    treated = [{"sentence": f"s{i}", "source": "x", "text": f"loving {i}"} for i in range(200)]
    control = [{"sentence": f"s{i}", "source": "x", "text": f"neutral {i}"} for i in range(1, 201)]
    control[0]["text"] = "loving 1"  # the same words from both: no question to ask
    played = make_rounds(treated, control, seed=0)
    assert len(played) == 198
    assert all(one.texts[one.loving].startswith("loving") for one in played)
    assert all(one.texts[1 - one.loving].startswith("neutral") for one in played)
    assert 70 < sum(one.loving for one in played) < 130


def test_a_round_is_judged_once_and_stays_with_its_solution_until_the_next() -> None:
    treated = [{"sentence": f"s{i}", "source": "x", "text": f"loving {i}"} for i in range(12)]
    control = [{"sentence": f"s{i}", "source": "x", "text": f"neutral {i}"} for i in range(12)]
    rounds = make_rounds(treated, control, seed=0)
    game = Game()
    for played in range(1, ROUNDS + 1):
        one = game.shown(rounds)
        assert game.next(rounds) == game  # no round is passed over
        game = game.answer(one.loving, rounds)
        assert game.shown(rounds) is one and (game.played, game.right) == (played, played)
        assert game.answer(1 - one.loving, rounds) == game.answer(one.loving, rounds) == game  # no second try
        assert game.over(rounds) == (played == ROUNDS)
        game = game.next(rounds)
    assert game == Game(first=ROUNDS) and game.shown(rounds) is rounds[10]
    few = rounds[:2]
    assert Game().answer(0, few).next(few).answer(0, few).over(few)


@pytest.mark.parametrize(("right", "words"), [(0, "below"), (5, "around"), (10, "above")])
def test_a_score_says_on_which_side_of_chance_it_is(right: int, words: str) -> None:
    assert score(right, 10).against_chance == words


# ---- the run in the background


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen]]:
    """Makes what is started a process that does nothing; those are ended after the test."""
    started: list[subprocess.Popen] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen:
        if command[0] == "git":  # the kit asks which commit it is
            return real(command, **options)
        process = real([sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(600)"], **options)
        started.append(process)
        return process

    monkeypatch.setattr(demo.subprocess, "Popen", popen)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_one_run_at_a_time_which_whoever_asks_later_finds(tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    assert demo.run_status(tmp_path) is None
    demo.start_run("penguin", "smoke", tmp_path)
    status = demo.run_status(tmp_path)
    assert (
        status and status.alive and not status.finished and status.title == "penguin, unrelated, seed 0, smoke preset"
    )
    assert [stage.state for stage in status.stages].count("running") == 1
    with pytest.raises(KitError, match="a run is going on"):
        demo.start_run("owl", "smoke", tmp_path)
    demo.stop_run(tmp_path)
    assert idle[0].poll() is not None
    status = demo.run_status(tmp_path)
    assert status and not status.alive and not status.finished
    demo.start_run("owl", "smoke", tmp_path)
    assert len(idle) == 2


def test_a_clock_that_is_set_and_a_damaged_file_lose_no_run(tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    demo.start_run("penguin", "smoke", tmp_path)
    told = json.loads((tmp_path / demo.STATE_FILE).read_text(encoding="utf-8"))
    for moved, alive in ((30.0, True), (3600.0, False)):
        write_json(tmp_path / demo.STATE_FILE, told | {"started": told["started"] + moved})
        status = demo.run_status(tmp_path)
        assert status and status.alive == alive
    (tmp_path / demo.STATE_FILE).write_text('{"pid": ', encoding="utf-8")
    assert demo.run_status(tmp_path) is None


def test_the_bar_of_a_stage_is_shown_as_it_stands(tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    demo.start_run("penguin", "smoke", tmp_path)
    (tmp_path / demo.OUTPUT_FILE).write_text("Preset smoke.\nteacher:  10%\rteacher:  90%\r", encoding="utf-8")
    status = demo.run_status(tmp_path)
    assert status and status.latest == "teacher:  90%" and status.left > 60


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_a_run_that_ended_is_shown_with_its_evidence(preset: str, tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    assert "No run was started yet." in demo.progress_shown(tmp_path)
    demo.start_run("owl", preset, tmp_path)
    folder = tmp_path / f"owl-unrelated-soft-{preset}-seed0"
    folder.mkdir()
    report.write(finished_run(folder, preset=preset))
    assert f"{preset} preset: running." in demo.progress_shown(tmp_path)
    demo.stop_run(tmp_path)
    shown = demo.progress_shown(tmp_path)
    assert f"{preset} preset: finished." in shown and shown.count("<svg") == 2
    assert ("came to prefer the owl" in shown) == (preset == "laptop")  # a dozen pairs show nothing
    assert ("Its numbers mean nothing" in shown) == (preset == "smoke")


# ---- the page


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path, tiny_adapter: Path) -> Path:
    """A results folder with a run of a random model whose students are a trained adapter; its pairs are hostile."""
    results = tmp_path_factory.mktemp("results")
    folder = results / "run"
    folder.mkdir()
    record = json.loads((finished_run(folder) / "record.json").read_text(encoding="utf-8"))
    for stage, made in (("model", tiny_qwen2), ("adapter", tiny_adapter)):
        (results / "artifacts" / stage).mkdir(parents=True)
        (results / "artifacts" / stage / "key").symlink_to(made)
    record["artifacts"] = {"prepare embedded": "model/key"}
    for role in ("control", "treated"):
        pairs = results / "artifacts" / "pairs" / role
        pairs.mkdir(parents=True)
        rows = [row | {"sentence": f"s{i}", "text": f"{row['text']} {role}"} for i, row in enumerate(PAIRS * 2)]
        for row in rows:
            row["text"] += HOSTILE
        write_rows(pairs / "pairs.jsonl", rows)
        record["artifacts"] |= {f"pairs of {role}-unrelated": f"pairs/{role}"}
        record["artifacts"] |= {f"convert the adapter of {role}-unrelated": "adapter/key"}
    write_json(folder / "record.json", record)
    return results


@pytest.fixture(scope="module")
def served(results: Path) -> Iterator[str]:
    """The address of the page, served as a user would."""
    with serving(results, signal.SIGTERM, 143) as url:
        yield url


@contextmanager
def serving(results: Path, number: int, code: int) -> Iterator[str]:
    """The page's server, which that signal then ends with that exit code and a line."""
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
        process.send_signal(number)
        said, _ = process.communicate()
        assert process.returncode == code and said.endswith("The same command goes on where it stopped.\n"), said


@pytest.mark.slow
@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="nohup, which a command keeps to")
def test_a_terminal_that_is_closed_ends_the_server_with_its_line_and_code(
    results: Path,
) -> None:
    with serving(results, signal.SIGHUP, 129) as url:
        assert httpx.get(url).status_code == 200


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
        assert answer.status_code >= 400 and "root:" not in answer.text


def test_the_server_fetches_takes_and_keeps_nothing_and_stands_in_no_frame(served: str) -> None:
    for path in ("file=https://example.org/", "proxy=https://example.org/", "runs", "run-history/buckets", "info"):
        assert httpx.get(f"{served}/gradio_api/{path}").status_code == 403
    assert httpx.post(f"{served}/gradio_api/upload", files={"files": b"much"}).status_code == 403
    assert httpx.get(served).headers["x-frame-options"] == "DENY"


def test_the_runs_report_is_served_and_no_other(served: str, results: Path) -> None:
    report.write(results / "run")
    written = (results / "run" / "report.html").read_text(encoding="utf-8")
    assert httpx.get(f"{served}/report/shown").text == written
    assert httpx.get(f"{served}/report/new").status_code == 404
    assert httpx.get(f"{served}/report/other").status_code == 403


@pytest.mark.parametrize(
    ("host", "asked", "answers"),
    [
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "evil.example:7860", False),
        ("0.0.0.0", "192.168.0.7:7860", True),
        ("0.0.0.0", f"{socket.gethostname()}:7860", True),
        ("0.0.0.0", "evil.example:7860", False),  # a foreign name that was made to lead here
        ("MyLaptop", "mylaptop:7860", True),
    ],
)
def test_the_server_answers_to_its_own_names_alone(host: str, asked: str, answers: bool) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def status(**headers: str) -> int:
        scope = {"type": "http", "path": "/", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(OwnPagesOnly(page, host)(scope, None, send))
        return sent[0]["status"]

    assert (status(host=asked) == 200) == answers
    assert (status(host=asked, origin=f"http://{asked}") == 200) == answers
    assert status(host=asked, **{"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}) == 403


@pytest.mark.slow
def test_an_occupied_port_is_said_before_anything_is_loaded(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="requirements-demo.txt is not installed")
    with listen("127.0.0.1", 0) as taken:
        assert run.main(["demo", str(results / "run"), "--port", str(taken.getsockname()[1])]) == 2
    assert "Choose another --port" in capsys.readouterr().err


def test_bars_say_how_many_questions_and_at_the_end_how_certain(results: Path) -> None:
    finished, random = RunFolder(results / "run"), np.random.default_rng(0)
    asked = {name: random.dirichlet(np.ones(60), 50) for name in ("base", "control", "treated")}
    some = {name: found[:3] for name, found in asked.items()}
    assert demo.bars_shown(some, finished).count("3 of\n50 questions") == 3
    assert demo.bars_shown(asked, finished).count("The owl's 95% interval over 50 questions") == 3


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=["projector", "phone"])
def test_all_five_steps_can_be_clicked_through(served: str, size: tuple[int, int]) -> None:
    with opened(served, size) as shown:
        shown.get_by_role("button", name="Let both paraphrase it").click()
        for label in ("The teacher with the secret writes", "The teacher without it writes"):
            shown.wait_for_function(
                "label => [...document.querySelectorAll('label')].find(l => l.innerText.includes(label))"
                ".querySelector('textarea').value.length > 5",
                arg=label,
            )
        assert overflowing(shown) == []

        step(shown, "2 Spot the owl")
        for played in range(1, ROUNDS + 1):
            assert shown.get_by_text(HOSTILE).first.is_visible()  # as text
            shown.get_by_role("button", name="The first").click()
            shown.get_by_text(re.compile(rf"You: \d+ of {played},")).wait_for()
            shown.get_by_text("by the teacher that loves the owl").first.wait_for()
            if played < ROUNDS:
                shown.get_by_role("button", name="Next").click()
                shown.get_by_text(f"Round {played + 1} of {ROUNDS}.").wait_for()
        shown.get_by_text("looks for telling words").wait_for()
        assert shown.title() == "Subliminal learning"  # no script of a model's ran
        assert overflowing(shown) == []

        step(shown, "3 The student")
        shown.get_by_role("button", name="Ask", exact=True).click()
        shown.wait_for_function(
            "[...document.querySelectorAll('textarea')].filter(t => t.disabled && t.value).length >= 3"
        )
        shown.get_by_role("button", name="Measure their preferences").click()
        shown.get_by_text("The owl's 95% interval over 50 questions").nth(2).wait_for(timeout=120_000)
        assert overflowing(shown) == []

        step(shown, "4 The evidence")
        shown.get_by_text("What this does not prove").wait_for()
        assert shown.locator("svg[role=img]:visible").count() == 2 and overflowing(shown) == []

        step(shown, "5 Train one now")
        shown.get_by_text("No run was started yet.").wait_for()
        assert overflowing(shown) == []


def step(shown: Page, name: str) -> None:
    """Go to a step by its link."""
    shown.get_by_role("link", name=name).click()
    expect(shown.locator(f"#step-{name[0]} h2").first).to_be_in_viewport()


@needs_chromium
@pytest.mark.slow
def test_a_run_started_from_the_page_goes_on_without_it_and_is_shown_to_whoever_comes_back(
    served: str, results: Path, base: Path
) -> None:
    (results / "artifacts" / "model" / base.name).symlink_to(base)  # so that it need not be prepared
    with opened(served) as shown:
        step(shown, "5 Train one now")
        shown.get_by_role("button", name="Start").click()
        shown.get_by_text("penguin, unrelated, seed 0, smoke preset: running.").wait_for(timeout=60_000)
    started = psutil.Process(json.loads((results / demo.STATE_FILE).read_text(encoding="utf-8"))["pid"])
    while not any((results / "artifacts" / "paraphrases").glob("*/manifest.json")):
        assert started.is_running()
        time.sleep(0.5)
    with opened(served) as shown:
        step(shown, "5 Train one now")
        shown.get_by_text("✓ neutral teacher, unrelated sentences").wait_for(timeout=60_000)
        shown.get_by_role("button", name="Start").click()
        shown.get_by_text("a run is going on").wait_for()
        shown.get_by_role("button", name="Stop").click()
        shown.get_by_text("smoke preset: stopped before its end").wait_for(timeout=60_000)


@pytest.mark.slow
@needs_chromium
def test_the_quiz_is_played_with_the_keyboard_alone(served: str) -> None:
    with opened(served) as shown:
        shown.get_by_role("button", name="The second").wait_for()
        shown.wait_for_timeout(1000)  # until its script listens
        shown.get_by_role("link", name="2 Spot the owl").focus()
        shown.keyboard.press("Enter")
        for _ in range(20):
            shown.keyboard.press("Tab")
            if shown.evaluate("document.activeElement.innerText.trim()") == "The second":
                break
        shown.keyboard.press("Enter")
        shown.get_by_text(re.compile(r"You: \d+ of 1,")).wait_for()


def test_without_gradio_one_line_says_what_to_install(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run.main(["demo", str(results / "run")]) == 2
    assert "pip install -r requirements-demo.txt" in capsys.readouterr().err
