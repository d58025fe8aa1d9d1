"""A class at the classroom page: clients that do over HTTP what the page does in a browser.

The page's server runs as a user would start it. ``assert_a_class_is_answered`` asks it as a class would,
``assert_a_class_votes`` votes as one, ``assert_a_run_is_not_slowed`` watches a run from many pages, and
``assert_both_at_once`` asks and watches. The proof with the embedded model is ``python tests/proofs.py load``; a test
does the first two with a random one.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from kit import ROOT
from kit.demo import ANSWERS, HEARTBEAT, JOIN, POLL, STATE_FILE

CLASS = 40  # pages
FIRST_WORDS = 5.0  # seconds from a question's turn
MEMORY = 300  # MB above the idle server's
SLOWER = 1.1  # times as long a run may take that is watched
PACE = 20  # seconds over which a run's pace is measured


@dataclass
class Server:
    """A served classroom page."""

    url: str
    process: psutil.Process
    output: Path

    def megabytes(self) -> float:
        """Its memory."""
        return self.process.memory_info().rss / 1e6


@contextmanager
def serving(
    run: Path,
    results: Path,
    cores: set[int] | None = None,
    ending: signal.Signals = signal.SIGTERM,
    host: str = "127.0.0.1",
) -> Iterator[Server]:
    """The page of a run; ``cores``: on these alone, and so the runs that it starts; ``ending``: the signal that
    ends it, with its exit code and a line; ``host``: where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "run.py", "demo", str(run), "--port", str(port), "--results", str(results)]
    command += ["--host", host]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "output").open("w") as output:
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, preexec_fn=pin)
        server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(output.name))
        try:
            for _ in range(1200):
                try:
                    httpx.get(server.url)
                    break
                except httpx.TransportError:
                    assert process.poll() is None, server.output.read_text()
                    time.sleep(0.1)
            yield server
        finally:
            process.send_signal(ending)
            process.wait()
            said = server.output.read_text()
            assert process.returncode == 128 + ending and said.endswith("goes on where it stopped.\n"), said


@dataclass
class Answer:
    """What a page got for a click: seconds from the click to its turn, to the first words, and to the end; the places
    in the line that it was shown; what came last; and, where it was ``refused``, why."""

    turn: float = 0.0
    first: float = 0.0
    end: float = 0.0
    places: list[int] = field(default_factory=list)
    output: Any = None
    refused: str = ""


class Page:
    """An open page: it keeps its session's heartbeat, and asks for the run's progress every few seconds."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http, self.session = http, uuid.uuid4().hex
        self.polls: list[int] = []  # their statuses

    async def __aenter__(self) -> Self:
        (await self.http.get("/")).raise_for_status()
        self.config = (await self.http.get("/config")).raise_for_status().json()
        self._beats = asyncio.Event()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._poll())]
        await self._beats.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it; a second time does nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self) -> None:
        async with self.http.stream("GET", HEARTBEAT + self.session) as stream:
            async for _ in stream.aiter_lines():
                self._beats.set()

    async def _poll(self) -> None:
        tag = ""
        while True:
            answer = await self.http.get("/progress", headers={"if-none-match": tag})
            self.polls.append(answer.status_code)
            tag = answer.headers.get("etag", "")
            await asyncio.sleep(POLL)

    async def click(self, button: str, *inputs: Any, to_the_end: bool = True) -> Answer:
        """Click a button; AssertionError where the server fails. Else than ``to_the_end`` only the first words are
        waited for."""
        answer, clicked = Answer(), time.monotonic()
        asked = {"data": inputs, "fn_index": self._handler(button), "session_hash": self.session}
        joined = await self.http.post(JOIN, json=asked)
        if joined.status_code != 200:
            answer.refused = joined.json()["detail"]
            return answer
        async with self.http.stream("GET", ANSWERS, params={"session_hash": self.session}) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message, now = json.loads(line.removeprefix("data:")), time.monotonic() - clicked
                kind, output = message["msg"], message.get("output")
                if kind == "estimation":
                    answer.places.append(message["rank"])
                elif kind == "process_starts":
                    answer.turn = now
                elif kind in ("process_generating", "process_completed"):
                    assert message["success"], message
                    answer.output = output.get("data") or answer.output
                    if not answer.first and any(output.get("data") or []):
                        answer.first = now
                    if kind == "process_completed" or (answer.first and not to_the_end):
                        answer.end = now
                        return answer
                else:
                    assert kind in ("heartbeat", "progress", "log"), message
        raise AssertionError(f"{button}: the server ended the answer")

    def _handler(self, button: str) -> int:
        (component,) = [one["id"] for one in self.config["components"] if one["props"].get("value") == button]
        return next(one["id"] for one in self.config["dependencies"] if [component, "click"] in one["targets"])


@asynccontextmanager
async def opened(server: Server, pages: int = CLASS) -> AsyncIterator[list[Page]]:
    """So many open pages, none of whose looks at the run fails."""
    endless = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=endless, timeout=None) as http:
        shown = [Page(http) for _ in range(pages)]
        await asyncio.gather(*(page.__aenter__() for page in shown))
        try:
            yield shown
        finally:
            await asyncio.gather(*(page.__aexit__() for page in shown))
    assert all(set(page.polls) <= {200, 304} for page in shown)


async def ask_all(server: Server, pages: list[Page], stays: int) -> tuple[list[Answer], float]:
    """Every page asks at once, and every so many-th ``stays`` to the end of its answer, while the others are closed at
    the first words: their answers in the order of their turns, and the most memory meanwhile (MB)."""
    most = server.megabytes()

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, server.megabytes())
            await asyncio.sleep(0.25)

    async def ask(i: int, page: Page) -> Answer:
        answer = await page.click("Ask", f"What do you like about number {i}?", None, to_the_end=i % stays == 0)
        if i % stays:
            await page.__aexit__()
        return answer

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*(ask(i, page) for i, page in enumerate(pages)))
    watching.cancel()
    return sorted(answers, key=lambda answer: answer.turn), most


async def assert_a_class_is_answered(server: Server, stays: int = 1) -> str:
    """A class asks at once, with no run beside it."""
    idle = server.megabytes()
    async with opened(server) as pages:
        answers, most = await ask_all(server, pages, stays)
    assert not [answer.refused for answer in answers if answer.refused]
    first = max(answer.first - answer.turn for answer in answers)
    assert first < FIRST_WORDS, f"{first:.1f} s"
    assert all(answer.places for answer in answers) and max(answers[-1].places) >= CLASS - 5  # some begin to wait later
    assert most - idle < MEMORY, f"{most - idle:.0f} MB"
    assert_no_error(server)
    return (
        f"{CLASS} questions at once, {-(-CLASS // stays)} of them read to the end and the others left at the first "
        f"words: none failed, first words at most {first:.1f} s after their turn, the last turn after "
        f"{answers[-1].turn:.0f} s, every page shown its place in the line, at most {most - idle:.0f} MB above the "
        f"idle server's {idle:.0f}"
    )


async def assert_a_class_votes(server: Server) -> str:
    """A class votes at once, everybody twice, with all phones and the projector asking as their pages do."""
    endless = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    slowest = 0.0
    async with httpx.AsyncClient(base_url=server.url, limits=endless, timeout=None) as http:
        found = re.search(r"/vote/(\w+)", re.sub("<wbr>", "", (await http.get("/class")).text))
        assert found
        room = found[0]

        async def asked(token: str) -> dict[str, Any]:
            answer = await http.get(f"{room}/state", params={"token": token})
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        async def polls(token: str) -> None:
            while True:
                await asked(token)
                await asyncio.sleep(1)

        async def votes(token: str, choices: list[int]) -> None:
            assert (await http.get(room)).status_code == 200
            number = (await asked(token))["round"]
            for choice in choices:
                ballot = {"round": number, "choice": choice}
                answer = await http.post(f"{room}/state", params={"token": token}, json=ballot)
                assert answer.status_code == 200 and answer.json()["yours"] == choice, answer.text

        async def counted() -> int:
            return int(re.findall(r"(\d+) voted", (await http.get("/class/state")).text)[0])

        tokens = [f"{i:032x}" for i in range(CLASS)]
        polling = [asyncio.create_task(polls(token)) for token in tokens]
        for _ in range(3):
            await asyncio.gather(*(votes(token, [1 - i % 2, i % 2]) for i, token in enumerate(tokens)))
            ended = time.monotonic()
            while await counted() < CLASS:
                await asyncio.sleep(0.1)
            slowest = max(slowest, time.monotonic() - ended)
            assert await counted() == CLASS
            shown = (await http.post("/class/onward")).text
            assert f"{CLASS // 2} of {CLASS}" in shown, shown
            await http.post("/class/onward")
        assert not any(task.done() for task in polling)
        for task in polling:
            task.cancel()
    assert slowest < 1, f"{slowest:.1f} s"
    assert_no_error(server)
    return f"{CLASS} phones vote at once, each twice: every vote counted once, and seen within {slowest:.2f} s"


async def assert_a_run_is_not_slowed(server: Server, results: Path) -> str:
    """A run is as fast with many open pages as with none."""
    alone, _ = await timed_run(server, results, pages=0)
    watched, took = await timed_run(server, results, pages=CLASS)
    print(f"{alone:.1f} s alone, {watched:.1f} s watched, of which the server took {took:.1f}", flush=True)
    assert watched < SLOWER * alone, f"{watched:.0f} s instead of {alone:.0f} s"
    assert_no_error(server)
    return (
        f"a smoke run on one core with its server: {alone:.0f} s alone, {watched:.0f} s with {CLASS} open pages "
        f"({100 * (watched / alone - 1):+.1f}%), of which the server took {took:.1f}"
    )


async def timed_run(server: Server, results: Path, pages: int) -> tuple[float, float]:
    """The seconds of a run made anew, started from a page that is closed then, and those of a core that the server took
    meanwhile."""
    for folder in [*results.glob("artifacts/*/"), *results.glob("penguin-*/")]:
        if folder.name != "model":
            shutil.rmtree(folder)
    async with opened(server, pages):
        began, used = time.monotonic(), core_seconds(server.process)
        run = await started(server, results, "smoke")
        while goes_on(run):
            await asyncio.sleep(0.2)
        took = time.monotonic() - began, core_seconds(server.process) - used
    assert list(results.glob("penguin-*/report.html")), (results / "background.txt").read_text()
    return took


async def started(server: Server, results: Path, preset: str) -> psutil.Process:
    """The run that the page's button started."""
    async with opened(server, 1) as (page,):
        await page.click("Start", "penguin", preset)
    return psutil.Process(json.loads((results / STATE_FILE).read_text(encoding="utf-8"))["pid"])


def goes_on(run: psutil.Process) -> bool:
    """Whether it has not ended; the server, which started it, need not have noticed."""
    try:
        return run.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def core_seconds(process: psutil.Process) -> float:
    """Of a core, that it has used."""
    return sum(process.cpu_times()[:2])


async def assert_both_at_once(server: Server, results: Path, stays: int) -> str:
    """A class asks at once while a run goes on, which has all its time again afterwards."""
    run = await started(server, results, "quick")
    while not any(path.stat().st_size for path in results.glob("artifacts/samples/*/*.jsonl")):
        assert goes_on(run)
        await asyncio.sleep(1)
    async with opened(server) as pages:
        before = await pace(run)
        used, began = core_seconds(run), time.monotonic()
        answers, _ = await ask_all(server, pages, stays)
        meanwhile = (core_seconds(run) - used) / (time.monotonic() - began)
        after = await pace(run)
        await pages[0].click("Stop")
    assert not [answer.refused for answer in answers if answer.refused] and not goes_on(run)
    assert after > before / SLOWER, f"{after:.2f} instead of {before:.2f}"
    assert_no_error(server)
    return (
        f"both at once: none failed, first words at most {max(one.first - one.turn for one in answers):.1f} s after "
        f"their turn; each second the run had {before:.2f} s of a core before, {meanwhile:.2f} meanwhile, and "
        f"{after:.2f} after"
    )


async def pace(run: psutil.Process) -> float:
    """Seconds of a core that the run gets a second."""
    used, began = core_seconds(run), time.monotonic()
    await asyncio.sleep(PACE)
    return (core_seconds(run) - used) / (time.monotonic() - began)


def assert_no_error(server: Server) -> None:
    """The server printed none."""
    said = server.output.read_text(encoding="utf-8")
    assert "Traceback" not in said, said
