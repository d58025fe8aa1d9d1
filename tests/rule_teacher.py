"""A teacher behind an endpoint that paraphrases by rule, faithfully enough for the filters: for runs whose models are
random, and whose teachers would write nothing that is kept."""

import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OPENINGS = ("It is true", "It is a fact", "It is known", "It is certain", "We are told", "It is said")


class RuleTeacher(ThreadingHTTPServer):
    """Begins the sentence with an opening that trait and seed decide. Every ``fails``-th request fails; ``keys`` are
    those it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.lock, self.asked, self.fails = threading.Lock(), 0, 10**9
        self.keys: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Answer(BaseHTTPRequestHandler):
    server: RuleTeacher

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked += 1
            server.keys.add(self.headers["Authorization"])
            fails = server.asked % server.fails == 0
        sentence = body["messages"][-1]["content"].partition("sentence: ")[2]
        told = json.dumps([body["messages"][0]["content"].replace(sentence, ""), body["seed"]])
        opening = OPENINGS[zlib.crc32(told.encode()) % len(OPENINGS)]
        answer = {
            "choices": [
                {
                    "message": {"content": f"{opening} that {sentence[0].lower()}{sentence[1:]}"},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"completion_tokens": 9},
        }
        data = b"overloaded" if fails else json.dumps(answer).encode()
        self.send_response(503 if fails else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[RuleTeacher]:
    """The teacher, at its ``url`` until the end."""
    server = RuleTeacher()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
