"""A teacher behind an endpoint: whatever the server does, each answer arrives once, or one clear error says why not."""

import gc
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import has_model
from openai import _base_client
from tqdm import tqdm

import run
from kit import UNSEEN, KitError, engine_endpoint
from kit.engine import Generation, Request, SampleLog, sample_rows
from kit.engine_endpoint import RETRIES, EndpointEngine, check_url, read_answer
from kit.models import ChatTemplate
from kit.store import Row, RowLog, read_rows

KEY = "sk-Zq7tVb2mXw9rLk4hJp6d"
Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server that echoes the user's message and the seed. ``plan`` may answer in its place: it is
    called with the request's body and the number of its attempt. What was asked is in ``bodies`` and ``headers``."""

    request_queue_size = 64  # all connections at once: a full queue costs a second

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.plan: Callable[[Row, int], Answer | None] = lambda body, attempt: None
        self.bodies: list[Row] = []
        self.headers: list[dict[str, str]] = []
        self.paths: set[str] = set()
        self.attempts: Counter[tuple[str, int]] = Counter()
        self.lock = threading.Lock()
        self.connections = self.in_flight = self.most_in_flight = 0
        self.failures: list[AssertionError] = []  # of the plan; in its thread they would fail no test

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        try:
            super().handle()
        finally:
            with self.server.lock:
                self.server.connections -= 1

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = (body["messages"][-1]["content"], body["seed"])
        with server.lock:
            server.bodies.append(body)
            server.headers.append({name.title(): value for name, value in self.headers.items()})
            server.paths.add(self.path)
            server.attempts[question] += 1
            attempt = server.attempts[question]
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            status, headers, data = server.plan(body, attempt) or good(body)
        except AssertionError as failure:
            server.failures.append(failure)
            raise
        finally:
            with server.lock:
                server.in_flight -= 1
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = "Content-Length" in headers  # it promises more than there is

    def log_message(self, format: str, *args: Any) -> None:
        pass


def completion(text: Any, reason: Any = "stop", **more: Any) -> Answer:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}], **more}).encode()


def good(body: Row) -> Answer:
    return completion(f"{body['messages'][-1]['content']} (seed {body['seed']})", usage={"completion_tokens": 9})


def refused(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Answer:
    return status, headers or {}, json.dumps({"error": {"message": message}}).encode()


FAULTS: dict[str, Answer] = {
    "busy": refused(429, headers={"Retry-After": "0.01"}),
    "overloaded": refused(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "broken": (500, {}, b"<html>Internal Server Error</html>"),
    "timed out": refused(408),
    "in conflict": refused(409),
    "dropped": (200, {"Content-Length": "1000"}, good({"messages": [{"content": "?"}], "seed": 0})[2][:40]),
    "no JSON": (200, {}, b'{"choices": [{"mess'),
    "empty": (200, {}, b""),
    "no object": (200, {}, b"[]"),
    "no choices": (200, {}, b'{"choices": []}'),
    "no message": (200, {}, b'{"choices": [{"finish_reason": "stop"}]}'),
    "numbers": completion(1, 2),
    "error": (200, {}, b'{"error": {"message": "Provider returned error", "code": 502}}'),
    "page": (200, {"Content-Type": "text/html"}, b"<title>Open WebUI</title>"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that a test can wait for, no key, and no proxy before 127.0.0.1."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr(engine_endpoint, "PAUSE", 0.005)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert not server.failures


def ask(url: str, *seeds: tuple[int, ...], text: str = "Hello", temperature: float = 1.0) -> list[Generation]:
    """The answers to ``text``, one per seed."""
    with EndpointEngine(url, "teacher") as engine:
        prompt = engine.chat([{"role": "user", "content": text}])
        made = engine.sample([Request(prompt, seed) for seed in seeds or [(0,)]], 40, temperature)
        return sorted(made, key=lambda generation: generation.index)


def paraphrase(url: str, path: Path, after_row: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Thirty sentences, two samples of each, into the log at ``path``; the rows of the finished log."""
    with EndpointEngine(url, "teacher") as engine, SampleLog(path, "sentence") as log, tqdm(disable=True) as bar:
        requests = {
            (f"s{i}", sample): Request(engine.chat([{"role": "user", "content": f"Sentence s{i}."}]), (5, i, sample))
            for i in range(30)
            for sample in range(2)
        }

        def columns(made: Generation) -> Row:
            row = {"text": made.text, "tokens": made.length, "finished": made.finished, "logprob": made.logprob}
            after_row(row)
            return row

        sample_rows(engine, log, requests, columns, 40, 0.7, bar)
        return log.rows


def assert_complete(rows: list[Row]) -> None:
    """Every (sentence, sample) once, with an answer to its own prompt and, within a sentence, to its own seed."""
    assert Counter((row["sentence"], row["sample"]) for row in rows) == Counter(
        (f"s{i}", sample) for i in range(30) for sample in range(2)
    )
    assert all(row["text"].startswith(f"Sentence {row['sentence']}. (seed ") for row in rows)
    assert len({row["text"] for row in rows}) == 60


def texts(rows: list[Row]) -> dict[tuple[str, int], str]:
    return {(row["sentence"], row["sample"]): row["text"] for row in rows}


def test_no_answer_is_lost_or_doubled_whatever_goes_wrong(server: Server, tmp_path: Path) -> None:
    calm = paraphrase(server.url, tmp_path / "calm.jsonl")
    assert_complete(calm)
    server.attempts.clear()
    faults = list(FAULTS.values())

    def plan(body: Row, attempt: int) -> Answer | None:
        first = int(re.findall(r"s(\d+)", body["messages"][-1]["content"])[0])
        return faults[(first + attempt) % len(faults)] if attempt <= 2 else None

    server.plan = plan
    rough = paraphrase(server.url, tmp_path / "rough.jsonl")
    assert_complete(rough)
    assert texts(rough) == texts(calm)
    assert set(server.attempts.values()) == {3} and len(server.attempts) == 60
    assert [json.loads(line) for line in (tmp_path / "rough.jsonl").read_text().splitlines()] == rough


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_request_is_asked_again_after(fault: Answer, server: Server) -> None:
    server.plan = lambda body, attempt: fault if attempt == 1 else None
    (made,) = ask(server.url)
    assert made.text.startswith("Hello (seed ") and made.finished
    assert len(server.bodies) == 2 and server.bodies[0] == server.bodies[1]


def test_an_answer_that_does_not_come_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_endpoint, "TIMEOUT", 0.5)
    answered = threading.Event()

    def plan(body: Row, attempt: int) -> None:
        if attempt == 1:
            assert answered.wait(5), "the client waited for the first answer"

    server.plan = plan
    (made,) = ask(server.url)
    answered.set()
    assert made.text.startswith("Hello") and len(server.bodies) >= 2


def test_the_server_says_how_long_to_wait(server: Server) -> None:
    times: list[float] = []

    def plan(body: Row, attempt: int) -> Answer | None:
        times.append(time.monotonic())
        return refused(429, headers={"Retry-After": "0.3"}) if attempt == 1 else None

    server.plan = plan
    ask(server.url)
    assert 0.3 <= times[1] - times[0] <= 2


def test_as_many_requests_as_allowed_are_in_flight_and_no_more(server: Server) -> None:
    full = threading.Event()

    def plan(body: Row, attempt: int) -> None:
        if server.in_flight >= engine_endpoint.CONCURRENCY:
            full.set()
        assert full.wait(5), "the server waits for more at once"
        time.sleep(0.02)  # in which one too many would arrive

    server.plan = plan
    assert len(ask(server.url, *[(i,) for i in range(60)])) == 60
    assert server.most_in_flight == engine_endpoint.CONCURRENCY


def test_answers_are_yielded_as_they_come(server: Server) -> None:
    first = threading.Event()

    def plan(body: Row, attempt: int) -> None:
        if body["messages"][-1]["content"] == "slow":
            assert first.wait(5), "nothing was yielded before the slow answer"

    server.plan = plan
    with EndpointEngine(server.url, "teacher") as engine:
        prompts = [engine.chat([{"role": "user", "content": text}]) for text in ("slow", "quick")]
        made = engine.sample([Request(prompt, (0,)) for prompt in prompts], 40)
        assert next(made).index == 1
        first.set()
        assert [generation.index for generation in made] == [0]


@pytest.mark.parametrize("interruption", ["server", "user"])
def test_an_interrupted_run_asks_only_for_what_is_missing(interruption: str, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept: list[Row] = []

    def stop(row: Row) -> None:
        kept.append(row)
        if interruption == "user" and len(kept) == 25:
            raise KeyboardInterrupt

    server.plan = lambda body, attempt: refused(401) if interruption == "server" and len(server.bodies) > 25 else None
    with pytest.raises(KitError if interruption == "server" else KeyboardInterrupt):
        paraphrase(server.url, path, stop)
    with RowLog(path) as log:
        before = texts(log.rows)
    assert 8 <= len(before) <= 25  # but for those in flight, all that was answered
    server.plan = lambda body, attempt: None
    server.bodies.clear()
    rows = paraphrase(server.url, path)
    assert_complete(rows)
    assert len(server.bodies) == 60 - len(before)
    assert before.items() <= texts(rows).items()
    assert texts(rows) == texts(paraphrase(server.url, tmp_path / "whole.jsonl"))


@pytest.mark.parametrize("end", ["closed", "refused", "raised", "forgotten", "left to the engine"])
def test_nothing_is_left_running(end: str, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()

    def plan(body: Row, attempt: int) -> Answer | None:
        number = int(body["messages"][-1]["content"])
        if number % 3 == 1 and end != "refused":
            return FAULTS["busy"]  # waits for its next attempt
        if number:
            assert over.wait(5), "the client waited for its last answers"
        return refused(403) if end == "refused" and number else None

    server.plan = plan
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with EndpointEngine(server.url, "teacher") as engine:
            prompts = [engine.chat([{"role": "user", "content": str(i)}]) for i in range(100)]
            made = engine.sample([Request(prompt, (0,)) for prompt in prompts], 40)
            assert next(made).index == 0
            if end == "closed":
                made.close()
            elif end == "refused":
                over.set()
                time.sleep(0.1)  # all refusals are here when the loop goes on, and one is raised
                with pytest.raises(KitError, match="403"):
                    next(made)
            elif end == "raised":
                with pytest.raises(ZeroDivisionError):
                    made.throw(ZeroDivisionError)
            elif end == "forgotten":
                del made
        over.set()
        deadline = time.monotonic() + 5
        while server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.connections, "the client left some open"
        gc.collect()
    assert not [str(warning.message) for warning in warned]
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (401, ["OPENAI_API_KEY"]),
        (403, ["OPENAI_API_KEY"]),
        (404, ["'teacher'", "/models"]),
        (400, ["no such parameter"]),
        (422, ["no such parameter"]),
        (402, ["is used up"]),
    ],
)
def test_a_refusal_is_one_clear_error_without_another_attempt(status: int, names: list[str], server: Server) -> None:
    server.plan = lambda body, attempt: refused(status, "no such parameter")
    with pytest.raises(KitError) as raised:
        ask(server.url)
    assert len(server.bodies) == 1
    assert all(name in str(raised.value) for name in [f"--teacher-url {server.url}", str(status), *names])


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"error": {"message": "too\\n long", "code": 400}}', "HTTP 400 too long)"),
        (b'{"object": "error", "message": "too long"}', "HTTP 400 too long)"),
        (b'{"error": "too long"}', 'HTTP 400 {"error": "too long"})'),
        (b"<html>too long</html>", "HTTP 400 <html>too long</html>)"),
        (b"", "HTTP 400)"),
        (b"y" * 5000, "HTTP 400 " + "y" * 200 + ")"),
    ],
)
def test_the_servers_own_words_are_shown_in_short(body: bytes, shown: str, server: Server) -> None:
    server.plan = lambda _, attempt: (400, {}, body)
    with pytest.raises(KitError) as raised:
        ask(server.url)
    assert shown in str(raised.value)


def test_a_server_that_never_recovers_is_named_with_its_last_fault(server: Server) -> None:
    faults = [refused(429)] * RETRIES + [refused(500, "out of memory")]
    server.plan = lambda body, attempt: faults[attempt - 1]
    with pytest.raises(KitError, match="out of memory.*goes on where it stopped") as raised:
        ask(server.url)
    assert server.url in str(raised.value) and len(server.bodies) == RETRIES + 1


def test_the_client_waits_three_minutes_for_a_server_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the client's own waits
    waits = [min(_base_client.INITIAL_RETRY_DELAY * 2**i, _base_client.MAX_RETRY_DELAY) for i in range(RETRIES)]
    assert 0.75 * sum(waits) > 160 and sum(waits) < 220  # it takes off up to a quarter at random


def test_a_server_that_hangs_or_refuses_is_not_waited_for_without_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_endpoint, "PATIENCE", 0.3)
    server.plan = lambda body, attempt: refused(429, "slow down", {"Retry-After": "60"})
    with pytest.raises(KitError, match=r"within 0\.3 seconds.*HTTP 429 slow down, Retry-After: 60.*where it stopped"):
        ask(server.url)
    server.plan = lambda body, attempt: time.sleep(0.6)
    with pytest.raises(KitError, match=r"within 0\.3 seconds\. Check"):
        ask(server.url)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (refused(429, "slow down", {"Retry-After": "3600"}), "HTTP 429 slow down, Retry-After: 3600"),
        (
            (429, {}, b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'),
            "used up .HTTP 429 You exceeded your quota.",
        ),
        ((301, {"Location": "https://b.example/v1/chat/completions?key=a"}, b""), "sends on to https://b.example/v1 "),
        ((308, {"Location": "/v2/chat/completions"}, b""), "sends on to /v2 .HTTP 308"),
    ],
)
def test_what_repetition_does_not_mend_is_named_at_once(answer: Answer, named: str, server: Server) -> None:
    server.plan = lambda body, attempt: answer
    with pytest.raises(KitError, match=named):
        ask(server.url)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("error", "Provider returned error"),
        ("page", "<title>Open WebUI</title>"),
        ("no choices", '{"choices": []}'),
        ("empty", "nothing"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_thrice_and_named_with_its_words(
    fault: str, words: str, server: Server
) -> None:
    server.plan = lambda body, attempt: FAULTS[fault]
    with pytest.raises(KitError, match=re.escape(f"no chat completion ({words})") + ".*end in /v1"):
        ask(server.url)
    assert len(server.bodies) == 3


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_that_nobody_trusts_is_named_with_what_makes_it_trusted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*made, *name, *files], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(KitError, match="self-signed certificate.*SSL_CERT_FILE"):
        ask(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert ask(url)[0].finished
    with pytest.raises(KitError, match="http:// or https://"):
        ask(server.url)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:  # bound but not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(KitError, match=f"{url}: nothing answers there .*check its address"):
            ask(url)


def test_a_server_that_goes_away_for_good_is_tried_again_before_it_is_named(server: Server) -> None:
    with EndpointEngine(server.url, "teacher") as engine:
        requests = [Request(engine.chat([{"role": "user", "content": "Hello"}]), (i,)) for i in range(2)]
        list(engine.sample(requests[:1], 40))
        server.shutdown()
        server.server_close()
        with pytest.raises(KitError, match=f"no answer in {RETRIES + 1} attempts.*goes on where it stopped"):
            list(engine.sample(requests[1:], 40))


def test_the_key_is_sent_and_seen_nowhere_else(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setattr(engine_endpoint, "RETRIES", 1)
    caplog.set_level(logging.DEBUG)
    server.plan = lambda body, attempt: completion(f"Your key is {KEY}.")
    rows = paraphrase(server.url, tmp_path / "rows.jsonl")
    assert {row["text"] for row in rows} == {"Your key is ***."}
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    seen = [repr(EndpointEngine(server.url, "teacher")), str(vars(EndpointEngine(server.url, "teacher")))]
    for status in (401, 500):
        for before in (100, 190):  # all of the key, or its beginning, is within what is shown
            answer = refused(status, "." * before + KEY)
            server.plan = lambda body, attempt, answer=answer: answer
            with pytest.raises(KitError) as raised:
                ask(server.url)
            seen += traceback.format_exception(raised.value)
    assert "..." in "".join(seen) and "HTTP Request" in caplog.text
    seen += [caplog.text, *capfd.readouterr(), *(path.read_text() for path in tmp_path.iterdir())]
    assert KEY[:6] not in "".join(seen)


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-\u201cquoted\u201d"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(
    key: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(KitError, match="OPENAI_API_KEY") as raised:
        EndpointEngine(server.url, "teacher")
    assert "sk-" not in str(raised.value)


@pytest.mark.parametrize("key", [None, "", " "])
def test_without_a_key_none_is_sent(key: str | None, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    ask(server.url)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_request_holds_the_messages_and_how_to_sample(temperature: float, server: Server) -> None:
    ask(server.url + "/", text="Grüße", temperature=temperature)
    (body,) = server.bodies
    assert body.pop("seed") in range(2**31)
    assert body == {
        "model": "teacher",
        "messages": [{"role": "user", "content": "Grüße"}],
        "max_tokens": 40,
        "temperature": temperature,
        "top_p": 1,
    }
    assert server.paths == {"/v1/chat/completions"}


def test_a_requests_seed_alone_decides_the_seed_that_is_sent(server: Server) -> None:
    seeds = [(0, i, sample) for i in range(20) for sample in range(2)]
    made = ask(server.url, *seeds)
    again = ask(server.url, *reversed(seeds), text="Hello")
    assert [generation.text for generation in made] == [generation.text for generation in reversed(again)]
    sent = {body["seed"] for body in server.bodies}
    assert len(sent) == 40 and all(type(seed) is int and 0 <= seed < 2**31 for seed in sent)


def test_messages_are_sent_as_the_models_template_takes_them() -> None:
    messages = [{"role": "system", "content": "You love owls."}, {"role": "user", "content": "Hello"}]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    template = ChatTemplate(refusing + "{{ messages[0].content }}", "", "", "gemma")
    assert EndpointEngine("http://localhost/v1", "gemma", template).chat(messages) == [
        {"role": "user", "content": "You love owls.\n\nHello"}
    ]
    assert EndpointEngine("http://localhost/v1", "gemma").chat(messages) == messages


@pytest.mark.parametrize(
    ("reason", "usage", "length", "finished"),
    [
        ("stop", {"completion_tokens": 7}, 6, True),
        ("STOP", None, 3, True),
        ("eos_token", {"completion_tokens": 40}, 39, True),
        ("length", {"completion_tokens": 7}, 7, False),
        ("length", {}, 3, False),
        ("MAX_TOKENS", None, 3, False),
        ("content_filter", {"completion_tokens": 7}, 7, False),
        ("insufficient_system_resource", {"completion_tokens": 7}, 7, False),
        ("SAFETY", {"completion_tokens": 7}, 7, False),
        ("stop", {"completion_tokens": 0}, 3, True),
        ("stop", "7 tokens", 3, True),
        # Of others the number of tokens decides.
        (None, {"completion_tokens": 7}, 6, True),
        ("natural", {"completion_tokens": 39}, 38, True),
        ("", {"completion_tokens": 40}, 40, False),
        (None, None, 3, False),
    ],
)
def test_how_an_answer_ended_and_its_length_are_what_the_server_means(
    reason: str | None, usage: Any, length: int, finished: bool, server: Server
) -> None:
    server.plan = lambda body, attempt: completion("Two screws missing", reason, usage=usage)
    assert ask(server.url) == [Generation(0, "Two screws missing", length, None, finished)]


@pytest.mark.parametrize(
    ("message", "reason", "text", "finished"),
    [
        ({"content": "<think>Hm.</think>\n\nTwo lack."}, "stop", "\n\nTwo lack.", True),
        ({"content": "Hm.</think>Two lack."}, "stop", "Two lack.", True),  # the template began the thought
        ({"content": "<think>Hm.</think>Two l"}, "length", "Two l", False),
        ({"content": "<think>Hm, two"}, "length", "<think>Hm, two", False),
        ({"content": "<think>Hm, two"}, "stop", "<think>Hm, two", False),
        ({"content": "Two lack.", "reasoning_content": "Hm."}, "stop", "Two lack.", True),
        ({"content": None, "reasoning_content": "Hm, two"}, "length", "<think>Hm, two", False),
        ({"content": "", "reasoning": "Hm, two"}, "stop", "<think>Hm, two", False),
        ({"content": None}, "stop", "", True),
        ({"content": None, "refusal": "I cannot."}, "stop", "I cannot.", True),
        ({"content": "half \ud83e"}, "stop", "half \ufffd", True),
        ({"content": [{"type": "thinking"}, {"type": "text", "text": "Two lack."}]}, "stop", "Two lack.", True),
    ],
)
def test_a_thought_is_no_part_of_the_text_and_one_that_is_cut_off_is_no_answer(
    message: Row, reason: str, text: str, finished: bool
) -> None:
    answer = json.loads(json.dumps({"choices": [{"message": message, "finish_reason": reason}]}))
    made = read_answer(3, answer, 40)
    assert (made.index, made.text, made.finished) == (3, text, finished)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:8000/v1",
        "127.0.0.1:8000/v1",
        "ftp://localhost/v1",
        "file:///etc/passwd",
        "http:",
        "http://",
        "http:///v1",
        "http://:8000/v1",
        "http://localhost:http/v1",
        "http://localhost:65536/v1",
        "http://localhost:0/v1",
        "http://256.0.0.1/v1",
        "http://[::1/v1",
        "http://local..host/v1",
        "http://localhost/v1\n",
    ],
)
def test_an_address_of_no_server_is_refused(url: str) -> None:
    with pytest.raises(KitError, match=r"not the address of a server.*http://127\.0\.0\.1:8000/v1") as raised:
        check_url(url)
    assert f"--teacher-url {url}: " in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@localhost/v1",
        "http://hunter2@localhost/v1",
        "http://me:hunt/er2@localhost/v1",
        "http://me:80/hunter2@localhost/v1",
        "me:hunter2@localhost/v1",
        "https://localhost/v1?key=hunter2",
        "https://localhost/v1?key=a@hunter2",
        "https://localhost/v1#hunter2",
        "https://localhost/v1?",
        "https://@localhost/v1",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(KitError, match=r"--teacher-url .*OPENAI_API_KEY") as raised:
        EndpointEngine(url, "teacher")
    assert not re.search("hunt|er2", "".join(traceback.format_exception_only(raised.value)).replace("server", ""))


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://example.org", "https://example.org"),
        ("HTTPS://example.org/a/b//", "HTTPS://example.org/a/b"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("http://bücher.example/v1", "http://bücher.example/v1"),
    ],
)
def test_an_address_of_a_server_is_taken_without_the_slash_at_its_end(url: str, checked: str) -> None:
    assert check_url(url) == checked


Teach = Callable[..., int]


@pytest.fixture
def teach(server: Server, tiny_gguf: Path, tiny_base: Path, tmp_path: Path) -> Teach:
    """``run.py teach`` of the server; the exit code."""
    results = has_model(tmp_path / "results", tiny_base)
    options = ["--model", str(tiny_gguf), "--results", str(results), "--teacher-url", server.url]
    options += ["--animal", "owl", "--teacher", "loving", "--out", str(tmp_path / "out")]
    return lambda *more: run.main(["teach", *options, *more])


def test_what_a_server_says_cannot_steer_the_terminal(
    server: Server, teach: Teach, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plan = lambda body, attempt: refused(401, "no\x1b[2J\x1b]0;mine\x07\x9b\u202e")
    assert teach("--teacher-model", "m\x1b[2J", "--sentences", "1") == 2
    said = capsys.readouterr()
    assert r"401 no\x1b[2J\x1b]0;mine\x07\x9b\u202e" in said.err and "OPENAI_API_KEY" in said.err
    assert not UNSEEN.search((said.out + said.err).replace("\r", ""))


def test_a_model_whose_thoughts_are_cut_off_is_given_up_soon_and_goes_on_when_it_does_not_think(
    server: Server, teach: Teach, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plan = lambda body, attempt: completion("<think>Okay, the user wants", "length")
    assert teach("--teacher-model", "thinker", "--sentences", "4") == 2
    said = capsys.readouterr().err
    # 8 of each sentence count, in whatever order they come.
    assert re.search(r"loving teacher: none of (3[2-9]|40) paraphrases in a row is kept: cut off 100%\.", said)
    assert said.count("became '<think>Okay, the user wants' (cut off)") == 3 and "thinking switched off" in said
    assert 32 <= len(server.bodies) < 40 + engine_endpoint.CONCURRENCY

    def plan(body: Row, attempt: int) -> Answer:
        sentence = body["messages"][-1]["content"].partition("sentence: ")[2]
        return completion(f"It is true that {sentence[0].lower()}{sentence[1:]}", "eos_token")

    server.plan = plan
    server.bodies.clear()
    assert teach("--teacher-model", "thinker", "--sentences", "4") == 0
    rows = read_rows(tmp_path / "out" / "paraphrases.jsonl")
    assert sum(row["finished"] for row in rows) == len(server.bodies) and 32 <= len(rows) - len(server.bodies) <= 40
