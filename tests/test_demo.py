"""The classroom page: all five steps in a real browser, and a server that answers nobody else."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from browser import SIZES, faults, needs_chromium, opened, started
from conftest import PAIRS, artifact, links
from load import CLASS, Server, assert_a_class_is_answered, assert_a_class_votes, serving
from load import Page as Client
from load import opened as clients
from playwright.sync_api import Page, expect
from scipy.stats import binom
from test_report import finished_run

import run
from kit import ROOT, KitError, demo, report
from kit.animals import candidates
from kit.demo import BODY, JOIN, LINE, Classroom, OwnPagesOnly, Vote, Watch, WithinLimits, listen
from kit.engine_llama import LlamaEngine
from kit.experiment_conditions import base_model
from kit.experiment_folder import RunFolder
from kit.inspection_quiz import ROUNDS, Game, Round, make_rounds, score
from kit.stats import wilson
from kit.store import Store, write_json, write_rows
from kit.student_chat import CHARACTERS, Students

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


def test_a_clock_that_is_set_loses_no_run(tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    demo.start_run("penguin", "smoke", tmp_path)
    told = json.loads((tmp_path / demo.STATE_FILE).read_text(encoding="utf-8"))
    for moved, alive in ((30.0, True), (3600.0, False)):
        write_json(tmp_path / demo.STATE_FILE, told | {"started": told["started"] + moved})
        status = demo.run_status(tmp_path)
        assert status and status.alive == alive


@pytest.mark.parametrize(
    "damaged",
    ['{"pid": ', "[]", "null", "7", "{}", '{"pid": "1"}', "[" * 100_000]
    + [
        json.dumps({"pid": 1, "started": 0.0, "animal": "penguin", "preset": "smoke"} | wrong)
        for wrong in ({"pid": -1}, {"started": "now"}, {"animal": "../x"}, {"animal": ["owl"]}, {"preset": "paper"})
    ],
)
def test_a_damaged_file_is_said_on_the_page_and_the_next_start_mends_it(
    damaged: str, tmp_path: Path, idle: list[subprocess.Popen]
) -> None:
    (tmp_path / demo.STATE_FILE).write_text(damaged, encoding="utf-8")
    status, shown = Watch(tmp_path).look()
    assert status is None and "it does not say which run was started last" in shown
    demo.stop_run(tmp_path)  # nothing
    demo.start_run("penguin", "smoke", tmp_path)
    status, shown = Watch(tmp_path).look()
    assert status and status.alive and "smoke preset: running." in shown


def test_a_damaged_artifact_is_named_on_the_page_until_it_is_gone(tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    demo.start_run("penguin", "smoke", tmp_path)
    (tmp_path / demo.OUTPUT_FILE).unlink()  # what it printed may be missing
    folder = Store(tmp_path / "artifacts")._folder(base_model("embedded"))
    assert folder
    folder.mkdir(parents=True)
    watch = Watch(tmp_path)
    for _ in range(2):
        status, shown = watch.look(anew=True)
        assert status is None and "this artifact is damaged" in shown and str(folder.name) in shown
    folder.rmdir()
    assert watch.look(anew=True)[0]


@pytest.mark.slow
def test_a_look_makes_no_plan_anew_and_sees_what_was_made_since(
    tmp_path: Path, idle: list[subprocess.Popen], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, plan = [], demo.Plan
    monkeypatch.setattr(demo, "Plan", lambda *given: plans.append(given) or plan(*given))
    demo.start_run("penguin", "smoke", tmp_path)
    watch = Watch(tmp_path)
    before, _ = watch.look()
    folder = Store(tmp_path / "artifacts")._folder(base_model("embedded"))
    assert folder
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tiny_base)  # any complete artifact
    after, _ = watch.look(anew=True)
    assert before and after and len(plans) == 1
    assert (before.stages[0].state, after.stages[0].state) == ("running", "done")
    demo.stop_run(tmp_path)
    demo.start_run("owl", "smoke", tmp_path)
    assert watch.look(anew=True)[0] and len(plans) == 2


@pytest.mark.parametrize("record", ["[]", "{}", '{"animal": 7}', "\x00"])
def test_a_damaged_record_of_the_run_that_ended_is_a_sentence(
    record: str, tmp_path: Path, idle: list[subprocess.Popen]
) -> None:
    demo.start_run("owl", "smoke", tmp_path)
    demo.stop_run(tmp_path)
    folder = tmp_path / "owl-unrelated-soft-smoke-seed0"
    folder.mkdir()
    finished_run(folder)
    (folder / "report.html").touch()
    (folder / "record.json").write_text(record, encoding="utf-8")
    status, shown = Watch(tmp_path).look()
    assert status is None and "How the last run goes cannot be told." in shown and "damaged" in shown


def test_however_many_pages_ask_the_run_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, looking, go_on = [], threading.Event(), threading.Event()

    def run_status(results: Path) -> None:
        looks.append(results)
        looking.set()
        go_on.wait()

    monkeypatch.setattr(demo, "run_status", run_status)
    go_on.set()
    watch = Watch(tmp_path)
    for _ in range(CLASS):
        assert "No run was started yet." in watch.look()[1]
    assert len(looks) == 1
    watch.look(anew=True)
    assert len(looks) == 2
    monkeypatch.setattr(demo, "POLL", 0.0)  # what was seen is old
    go_on.clear()
    looking.clear()
    slow = threading.Thread(target=watch.look)
    slow.start()
    assert looking.wait(10)
    assert "No run" in watch.look()[1]  # at once, while another looks
    go_on.set()
    slow.join()
    assert len(looks) == 3


def test_the_bar_of_a_stage_is_shown_as_it_stands(tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    demo.start_run("penguin", "smoke", tmp_path)
    (tmp_path / demo.OUTPUT_FILE).write_text("Preset smoke.\nteacher:  10%\rteacher:  90%\r", encoding="utf-8")
    status = demo.run_status(tmp_path)
    assert status and status.latest == "teacher:  90%" and status.left > 60


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "quick"])
def test_a_run_that_ended_is_shown_with_its_evidence(preset: str, tmp_path: Path, idle: list[subprocess.Popen]) -> None:
    assert "No run was started yet." in demo.seen(tmp_path)[1]
    demo.start_run("owl", preset, tmp_path)
    folder = tmp_path / f"owl-unrelated-soft-{preset}-seed0"
    folder.mkdir()
    report.write(finished_run(folder, preset=preset))
    assert f"{preset} preset: running." in demo.seen(tmp_path)[1]
    demo.stop_run(tmp_path)
    _, shown = demo.seen(tmp_path)
    assert f"{preset} preset: finished." in shown and shown.count("<svg") == 2
    assert ("came to prefer the owl" in shown) == (preset == "quick")  # a dozen pairs show nothing
    assert ("Its numbers mean nothing" in shown) == (preset == "smoke")


# ---- the page


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path, tiny_adapter: Path) -> Path:
    """A results folder with a run of a random model whose students are a trained adapter; its pairs are hostile."""
    results = tmp_path_factory.mktemp("results")
    folder = results / "run"
    folder.mkdir()
    record = json.loads((finished_run(folder) / "record.json").read_text(encoding="utf-8"))
    record["artifacts"] = {"prepare embedded": artifact(results, "model", links(tiny_qwen2))}
    adapter = artifact(results, "adapter", links(tiny_adapter))
    for role in ("control", "treated"):
        rows = [row | {"sentence": f"s{i}", "text": f"{row['text']} {role}"} for i, row in enumerate(PAIRS * 2)]
        for row in rows:
            row["text"] += HOSTILE
        pairs = artifact(results, "pairs", lambda folder, rows=rows: write_rows(folder / "pairs.jsonl", rows))
        record["artifacts"] |= {f"pairs of {role}-unrelated": pairs}
        record["artifacts"] |= {f"convert the adapter of {role}-unrelated": adapter}
    write_json(folder / "record.json", record)
    return results


@pytest.fixture(scope="module")
def server(results: Path) -> Iterator[Server]:
    """The page, served as a user would."""
    pytest.importorskip("gradio", reason="requirements-demo.txt is not installed")
    with serving(results / "run", results) as server:
        yield server


@pytest.fixture(scope="module")
def served(server: Server) -> str:
    """Its address."""
    return server.url


@pytest.mark.slow
@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="nohup, which a command keeps to")
def test_a_terminal_that_is_closed_ends_the_server_with_its_line_and_code(results: Path) -> None:
    pytest.importorskip("gradio", reason="requirements-demo.txt is not installed")
    with serving(results / "run", results, ending=signal.SIGHUP) as server:
        assert httpx.get(server.url).status_code == 200


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
    assert httpx.post(f"{served}{JOIN}", content=b"x" * 10_000_000).status_code == 413
    assert httpx.get(served).headers["x-frame-options"] == "DENY"


def test_the_runs_report_is_served_and_no_other(served: str, results: Path) -> None:
    report.write(results / "run")
    written = (results / "run" / "report.html").read_text(encoding="utf-8")
    answer = httpx.get(f"{served}/report/shown")
    assert answer.text == written and answer.headers["content-security-policy"].startswith("sandbox;")
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


def through(limits: Any, path: str, *chunks: bytes, query: str = "") -> tuple[int, dict[str, Any], int]:
    """The status and the JSON of what a middleware answers to a request whose body comes in ``chunks``, and how many of
    them it took."""
    left, sent = list(chunks), []

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(limits({"type": "http", "path": path, "query_string": query.encode(), "headers": []}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), len(chunks) - len(left)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the length of the body."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"bytes": len(body)}).encode()})


def test_a_long_body_is_refused_before_it_is_read_to_its_end() -> None:
    limits = WithinLimits(echo, Counter(), lambda: 0)
    assert through(limits, JOIN, b"x" * 1000, b"y" * 24)[:2] == (200, {"bytes": 1024})
    assert through(limits, JOIN, b"x" * BODY)[0] == 200
    status, said, taken = through(limits, JOIN, *[b"x" * 65_536] * 2400)  # 150 MB
    assert status == 413 and said["detail"] == f"This is too long: the limit is {BODY} bytes." and taken == 2


def test_whoever_finds_the_line_full_is_told_so() -> None:
    waiting = LINE - 1
    limits = WithinLimits(echo, Counter(), lambda: waiting)
    assert through(limits, JOIN, b"{}")[0] == 200
    waiting = LINE
    status, said, _ = through(limits, JOIN, b"{}")
    assert status == 429 and said["detail"].startswith(f"{LINE} others wait already.")
    assert through(limits, "/progress")[0] == 200


@pytest.mark.parametrize(("path", "query"), [(demo.HEARTBEAT + "me", ""), (demo.ANSWERS, "session_hash=me")])
def test_nothing_is_made_for_a_page_that_left(path: str, query: str) -> None:
    room = SimpleNamespace(open=Counter())
    made = iter("abcdef")
    got = Classroom.while_open(room, SimpleNamespace(session_hash="me"), made)

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        assert [next(got), next(got)] == ["a", "b"]
        await echo(scope, receive, send)

    through(WithinLimits(streaming, room.open, lambda: 0), path, query=query)
    assert list(got) == [] and list(made) == list("cdef") and not room.open
    assert list(Classroom.while_open(room, SimpleNamespace(session_hash="never"), iter("abc"))) == []


@pytest.mark.slow
def test_a_long_question_is_refused_before_it_is_tokenised(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Students.of(RunFolder(results / "run"), "unrelated") as students:
        tokenised = []
        tokenize = LlamaEngine.tokenize
        monkeypatch.setattr(LlamaEngine, "tokenize", lambda self, text: tokenised.append(text) or tokenize(self, text))
        text = "a" * (CHARACTERS + 1)
        with pytest.raises(KitError, match="the question is too long"):
            next(students.answer({"base": [{"role": "user", "content": text}]}, 0))
        with pytest.raises(KitError, match="the sentence is too long"):
            next(students.paraphrase(["You love owls."], text, 0))
        assert tokenised == []
        next(students.answer({"base": [{"role": "user", "content": "Who?"}]}, 0))
        assert tokenised


def ask(room: Any, path: str, **headers: str) -> httpx.Response:
    """What is served beside the page."""
    pytest.importorskip("fastapi", reason="requirements-demo.txt is not installed")

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=demo.beside(room, []))
        async with httpx.AsyncClient(transport=transport, base_url="http://classroom") as http:
            return await http.get(path, headers=headers)

    return asyncio.run(asked())


def test_a_report_runs_no_script_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    for name in ("secret/report.html", "run/report.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<p>A report.</p>", encoding="utf-8")
    room = SimpleNamespace(new_report=lambda: None)
    room.report = lambda: demo.inside(tmp_path / "run", "report.html")
    answer = ask(room, "/report/shown")
    assert answer.text == "<p>A report.</p>"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"sandbox", "default-src 'none'", "style-src 'unsafe-inline'"} <= set(policy)
    assert not any("script" in rule or "same-origin" in rule for rule in policy)
    assert ask(room, "/report/new").status_code == 404
    (tmp_path / "run" / "report.html").unlink()
    assert ask(room, "/report/shown").status_code == 404
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "secret" / "report.html")
    assert ask(room, "/report/shown").status_code == 404
    (tmp_path / "other").symlink_to(tmp_path / "secret")
    assert demo.inside(tmp_path, "other/report.html") is None
    assert demo.inside(tmp_path, "secret/report.html")


def test_progress_is_sent_again_only_when_it_has_changed(tmp_path: Path) -> None:
    room = SimpleNamespace(report=None, new_report=None, watch=Watch(tmp_path))
    answer = ask(room, "/progress")
    assert "No run was started yet." in answer.text
    again = ask(room, "/progress", **{"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content
    (tmp_path / demo.STATE_FILE).write_text("[]", encoding="utf-8")
    room.watch.look(anew=True)
    assert "cannot be told" in ask(room, "/progress", **{"if-none-match": answer.headers["etag"]}).text


# ---- the recorded runs, and the lesson about them


def test_a_recorded_run_is_chosen_by_its_name_unless_a_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.recorded(None) == demo.RECORDED_RUN
    assert demo.recorded(Path("owl")) == demo.RECORDED_RUNS["owl"]
    with pytest.raises(KitError, match="cow: no such run. Give a folder such as results/<run>, or cat, owl,"):
        demo.recorded(Path("cow"))
    (tmp_path / "owl").mkdir()
    assert demo.recorded(Path("owl")) == Path("owl")


@pytest.mark.parametrize("name", demo.RECORDED_RUNS)
def test_each_recorded_run_has_small_adapters_and_an_inspection_of_its_own(name: str, tmp_path: Path) -> None:
    recorded = RunFolder(demo.RECORDED_RUNS[name], tmp_path)
    for role in ("control", "treated"):
        assert recorded.adapter(role, "unrelated").stat().st_size < 700_000
    known = demo.informed_score(recorded)
    assert known and known.rounds >= 20
    verdict = recorded.summary["effects"]["unrelated"]["verdict"]
    assert (verdict == "transmitted") == (name != "owl-text-alone"), verdict


@pytest.mark.parametrize(
    "damage", [{"right": 9, "rounds": 8}, {"right": 0, "rounds": 0}, {"right": "x", "rounds": 8}, {}]
)
def test_a_damaged_inspection_is_refused_when_the_page_starts(damage: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(demo.RECORDED_RUN, tmp_path / "run")
    path = folder / "inspection-unrelated.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["inspectors"]["likelihood ratio"]["score"] = damage
    write_json(path, found)
    with pytest.raises(KitError, match="inspection-unrelated.json: no inspection .* inspect"):
        demo.informed_score(RunFolder(folder, tmp_path))


def test_the_lesson_names_recorded_runs_and_says_how_often_guessing_gets_six_of_ten() -> None:
    lesson = (ROOT / "kit" / "lesson.md").read_text(encoding="utf-8")
    assert set(re.findall(r"run\.py demo (\w[\w-]*)", lesson)) <= set(demo.RECORDED_RUNS)
    assert f"Guessing gets 6 or more of 10 in {binom.sf(5, 10, 0.5):.0%} of cases" in lesson


# ---- the class votes


ROUND = [Round(f"Sentence {i}.", (f"First {i}.", f"Second {i}."), i % 2) for i in range(12)]


def tokens(n: int) -> list[str]:
    return [f"{i:032x}" for i in range(n)]


def test_a_browser_has_one_vote_a_round_the_later_one_and_none_once_the_answer_is_shown() -> None:
    vote = Vote(ROUND)
    first, second, third = tokens(3)
    vote.cast(first, 0, 0), vote.cast(second, 0, 1), vote.cast(first, 0, 1)
    assert vote.screen().counts == [0, 2] and vote.screen().right == []
    assert vote.phone(first)["yours"] == 1 and vote.phone(third)["yours"] is None
    assert vote.phone(first)["loving"] is None  # no phone knows before the projector shows it
    vote.onward()
    assert vote.phone(third)["loving"] == 0 and vote.screen().right == [(0, 2)] and vote.screen().solved
    with pytest.raises(KitError, match="This round is over"):
        vote.cast(third, 0, 0)
    vote.onward()
    shown = vote.phone(first)
    assert (shown["number"], shown["yours"], shown["loving"]) == (2, None, None) and vote.screen().counts == [0, 0]
    with pytest.raises(KitError, match="This round is over"):
        vote.cast(first, 0, 0)  # it came late


def test_after_ten_rounds_everybody_has_a_score_and_another_game_has_other_sentences() -> None:
    vote = Vote(ROUND)
    (right, sometimes) = tokens(2)
    for i in range(ROUNDS):
        vote.cast(right, i, ROUND[i].loving)
        if i < 3:
            vote.cast(sometimes, i, 1 - ROUND[i].loving)
        vote.onward()
        assert vote.screen().over == (i == ROUNDS - 1)
        if i < ROUNDS - 1:
            vote.onward()
    assert vote.screen().right == [(1, 2)] * 3 + [(1, 1)] * 7
    assert vote.phone(right)["right"] == vote.phone(right)["voted"] == ROUNDS
    assert (vote.phone(sometimes)["right"], vote.phone(sometimes)["voted"]) == (0, 3)
    vote.onward()
    assert vote.screen().round is ROUND[10] and vote.screen().right == [] and "right" not in vote.phone(right)
    for _ in range(4):
        vote.onward()
    assert vote.screen().round is ROUND[0]  # all were shown


def test_a_class_is_as_large_as_its_votes_are_kept_for(monkeypatch: pytest.MonkeyPatch) -> None:
    vote = Vote(ROUND)
    assert all(vote.admit(token) for token in tokens(demo.PHONES))
    assert not vote.admit("f" * 32) and vote.admit(tokens(1)[0])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + demo.GONE + 1)
    assert vote.admit("f" * 32) and vote.screen().phones == 1  # the others left


@pytest.mark.parametrize(("address", "own"), [("127.0.0.1", True), ("::ffff:127.0.0.1", True), ("203.0.113.9", False)])
def test_runs_are_started_and_stopped_on_the_machine_that_serves_the_page(address: str, own: bool) -> None:
    page = SimpleNamespace(client=SimpleNamespace(host=address))
    with nullcontext() if own else pytest.raises(KitError, match="for the machine that serves the page"):
        demo.check_own(page)
    with pytest.raises(KitError):
        demo.check_own(SimpleNamespace(client=None))


@pytest.fixture
def voting(results: Path) -> Any:
    """A room with rounds to vote on, and what is served of it."""
    pytest.importorskip("fastapi", reason="requirements-demo.txt is not installed")
    run = RunFolder(results / "run")
    return SimpleNamespace(
        vote=Vote(ROUND), rounds=ROUND, run=run, classifier=score(55, 100), informed=score(83, 100), report=None,
        new_report=None, watch=None,
    )  # fmt: skip


def asking(room: Any, client: str = "127.0.0.1") -> Callable[..., httpx.Response]:
    """Requests to a room's server from an address."""

    def ask(path: str, method: str = "GET", **options: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app=demo.beside(room, ["http://192.0.2.1:7860/vote/x"]), client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://classroom") as http:
                return await http.request(method, path, **options)

        return asyncio.run(asked())

    return ask


def test_the_projectors_page_is_for_the_machine_that_serves_it(voting: Any) -> None:
    here, elsewhere = asking(voting), asking(voting, client="203.0.113.9")
    for path, method in (("/class", "GET"), ("/handout", "GET"), ("/class/state", "GET"), ("/class/onward", "POST")):
        assert elsewhere(path, method).status_code == 403
        assert here(path, method).status_code == 200
    assert voting.vote.screen().solved  # of all these only ours moved it
    assert elsewhere("/report/shown").status_code == 403
    assert elsewhere(f"/vote/{voting.vote.code}").status_code == 200


@pytest.mark.parametrize(
    ("token", "ballot", "status"),
    [
        ("0" * 32, {"round": 0, "choice": 1}, 200),
        ("0" * 32, {"round": 0, "choice": 2}, 422),
        ("0" * 32, {"round": 0, "choice": "<b>"}, 422),
        ("0" * 32, {"round": 0}, 422),
        ("0" * 32, {"round": 0, "choice": 1, "more": 1}, 422),
        ("0" * 32, [], 422),
        ("0" * 32, {"round": 7, "choice": 1}, 409),
        ("0" * 31, {"round": 0, "choice": 1}, 404),
        ("<script>" * 4, {"round": 0, "choice": 1}, 404),
    ],
)
def test_what_is_no_vote_is_refused_and_counts_nothing(token: str, ballot: Any, status: int, voting: Any) -> None:
    answer = asking(voting)(f"/vote/{voting.vote.code}/state", "POST", params={"token": token}, json=ballot)
    assert answer.status_code == status and sum(voting.vote.screen().counts) == (status == 200)


def test_without_the_rooms_code_there_is_nothing_to_vote_on(voting: Any) -> None:
    ask = asking(voting)
    page = ask("/vote/wrong")
    assert page.status_code == 404 and "Scan the code on the screen again" in page.text
    assert ask("/vote/wrong/state", params={"token": "0" * 32}).status_code == 404
    assert voting.vote.code not in ask("/vote/wrong").text and Vote(ROUND).code != voting.vote.code


def test_the_end_shows_the_class_the_classifier_and_whoever_knows_the_prompts(voting: Any) -> None:
    """In which rounds count, not votes: a round has one pair of texts, however many look at it."""
    vote = voting.vote
    for i in range(ROUNDS):
        for token in tokens(8 if i < 7 else 30):
            vote.cast(token, i, ROUND[i].loving if i < 7 else 1 - ROUND[i].loving)
        vote.onward()
        shown = " ".join(demo.vote_shown(voting).split())
        assert ("<b>Right: 8 of 8</b>" in shown) == (i < 7)
        if i < ROUNDS - 1:
            vote.onward()
    assert "by its majority, where there is one: <b>7 of 10</b>" in shown
    low, high = (100 * end for end in wilson(0.7, 10))
    assert f"over 10 rounds 70% of the votes were right (95% interval: {low:.0f}% to {high:.0f}%)" in shown
    assert "<b>55 of 100</b>" in shown and "<b>83 of 100</b>" in shown
    assert "Write down what you expect" in shown and "percentage points" not in shown  # step 3 has that
    vote.onward()
    assert "0 voted" in demo.vote_shown(voting) and "majority" not in demo.vote_shown(voting)
    for _ in range(2 * ROUNDS - 1):
        vote.onward()
    assert "majority" not in demo.vote_shown(voting) and "Nobody voted." in demo.vote_shown(voting)


def test_a_link_for_phones_is_there_only_where_phones_can_reach_it() -> None:
    assert demo.vote_links("127.0.0.1", 7860, "abcde") == []
    links = demo.vote_links("0.0.0.0", 7860, "abcde")
    assert links and all(re.fullmatch(r"http://[\d.]+:7860/vote/abcde", link) for link in links)
    assert demo.qr(links).startswith("<svg") and demo.qr([]) == ""


@pytest.fixture(scope="module")
def open_server(results: Path) -> Iterator[Server]:
    """The page, served to a class."""
    pytest.importorskip("gradio", reason="requirements-demo.txt is not installed")
    with serving(results / "run", results, host="0.0.0.0") as server:
        yield server


@pytest.mark.slow
def test_whoever_asks_does_not_say_where_from(open_server: Server) -> None:
    answer = httpx.get(f"{open_server.url}/class", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status_code == 200  # believed, it would be refused; and 127.0.0.1 from elsewhere let in


@pytest.mark.slow
def test_forty_phones_vote_at_once_and_each_vote_is_counted_once_and_seen_within_a_second(open_server: Server) -> None:
    asyncio.run(assert_a_class_votes(open_server))


@needs_chromium
@pytest.mark.slow
def test_a_phone_votes_and_the_projector_shows_it_within_a_second(open_server: Server) -> None:
    projected, held = SIZES
    with started() as browser, opened(f"{open_server.url}/class", projected, browser=browser) as projector:
        link = re.findall(r"/vote/\w+", projector.locator("aside").inner_text())[0]
        with opened(open_server.url + link, held, browser=browser) as phone:
            phone.get_by_text("Press one of the two.").wait_for()
            assert phone.get_by_text(HOSTILE).first.is_visible() and projector.get_by_text(HOSTILE).first.is_visible()
            before = int(projector.locator(".count").inner_text().split()[0])
            phone.locator(".choice").first.click()
            projector.get_by_text(f"{before + 1} voted").wait_for(timeout=1000)
            phone.get_by_text("Your vote is counted.").wait_for()
            assert faults(phone) == faults(projector) == []
            projector.get_by_role("button", name="Show the answer").click()
            phone.get_by_text(re.compile("You were right|Not this time")).wait_for()
            projector.get_by_text(re.compile(r"Right: \d+ of \d+")).wait_for()
            assert faults(phone) == faults(projector) == []
            projector.get_by_role("button", name="Next").click()
            projector.get_by_role("button", name="Show the answer").wait_for()
            phone.get_by_text("Press one of the two.").wait_for()
            assert (phone.title(), projector.title()) == ("Vote", "The class votes")  # no script of a model's ran


@needs_chromium
@pytest.mark.slow
def test_the_quiz_on_paper_has_a_page_to_tick_one_to_write_on_and_one_for_the_instructor(
    open_server: Server,
) -> None:
    with opened(f"{open_server.url}/handout") as shown:
        assert shown.locator("ol li").count() == ROUNDS and faults(shown) == []
        assert shown.get_by_text(HOSTILE).first.is_visible()
        shown.emulate_media(media="print")
        for part in (".sheet", ".key"):
            assert shown.locator(part).evaluate("one => getComputedStyle(one).breakBefore") == "page"


def test_a_class_that_asks_at_once_is_answered_one_by_one(server: Server) -> None:
    asyncio.run(assert_a_class_is_answered(server))


def test_who_joined_the_line_and_left_is_not_answered(server: Server) -> None:
    """Neither one that never listened, nor one that closed its page while it waited, or in the middle of an answer."""

    async def leave() -> float:
        async with clients(server, 2) as (first, second):
            whole = await first.click("Ask", "Who are you?", None)
            for _ in range(10):
                asked = {"data": ["Who?", None], "fn_index": first._handler("Ask"), "session_hash": "nobody"}
                assert (await first.http.post(JOIN, json=asked)).status_code == 200
            async with Client(first.http) as gone:
                left = [asyncio.create_task(gone.click("Ask", "Who?", None)) for _ in range(2)]
                await asyncio.sleep(whole.end / 2)
                for one in left:
                    one.cancel()
            last = await second.click("Ask", "Who are you?", None)
        return last.turn / whole.end

    assert asyncio.run(leave()) < 5  # answers to all that left would have taken twelve times as long as one


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


def test_a_tally_grows_to_fifty_draws_among_the_animals_as_probable_as_each_student_finds_them(results: Path) -> None:
    finished = RunFolder(results / "run")
    j = [one.singular for one in candidates(finished.animal)].index("owl")
    likely, unlikely = np.full(60, 0.001), np.full(60, 0.001)
    likely[j], unlikely[j] = 0.3, 0.0  # of what is drawn 84%, and nothing
    probable = {"base": unlikely, "control": unlikely, "treated": likely}
    *_, before, last = found = list(demo.drawn_endings(probable, seed=[3]))
    assert [int(one["base"].sum()) for one in found] == [*range(1, demo.DRAWS + 1)]
    assert all((last[name] - before[name]).sum() == 1 and (last[name] >= before[name]).all() for name in last)
    assert last["treated"][j] > 30 and last["base"][j] == 0 and (last["base"] == last["control"]).all()
    shown = " ".join(demo.tally_shown(last, probable, finished).split())
    assert f"Treated: {last['treated'][j]} of 50 say <b>owl</b>" in shown and "Base: 0 of 50 say <b>owl</b>" in shown
    assert "Exactly: 83.6%" in shown and "in 6% (base), 6% (control), 36% (treated) of cases" in shown
    assert shown.count("learned from the teacher that loves the owl") == 1 and "learned nothing" in shown


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
        assert faults(shown) == []

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
        assert faults(shown) == []

        step(shown, "3 The student")
        shown.get_by_role("button", name="Ask", exact=True).click()
        shown.wait_for_function(
            "[...document.querySelectorAll('textarea')].filter(t => t.disabled && t.value).length >= 3"
        )
        shown.get_by_role("button", name="Let each finish it 50 times").click()
        shown.get_by_text(re.compile(r"Treated: \d+ of 50 say owl")).wait_for()
        assert shown.get_by_text(re.compile(r"(Base|Control): \d+ of 50 say owl")).count() == 2
        shown.get_by_role("button", name="Measure their preferences").click()
        shown.get_by_text("The owl's 95% interval over 50 questions").nth(2).wait_for(timeout=120_000)
        assert faults(shown) == []

        step(shown, "4 The evidence")
        shown.get_by_text("What this does not prove").wait_for()
        assert shown.locator("svg[role=img]:visible").count() == 2 and faults(shown) == []

        step(shown, "5 Train one now")
        shown.get_by_text("No run was started yet.").wait_for()
        assert faults(shown) == []


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
