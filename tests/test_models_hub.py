"""Downloads from the Hub: what is fetched, what the cache answers, and one clear message for everything that can fail.

A fake Hub on this machine answers what huggingface_hub asks. The library reads the address when it is imported, so the
code under test runs in processes of its own.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from kit import ROOT, models

TOKEN = "hf_canaryOfTheTests"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
WANTED = {
    "config.json": b"{}",
    "generation_config.json": b"{ }",
    "tokenizer.json": b'{"a": 1}',
    "tokenizer_config.json": b'{"b": 1}',
    "special_tokens_map.json": b'{"c": 1}',
    "added_tokens.json": b'{"d": 1}',
    "vocab.json": b'{"e": 1}',
    "merges.txt": b"a b",
    "tokenizer.model": b"sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode(),
    SHARDS[0]: b"0" * 30_000_000,
    SHARDS[1]: b"1" * 1000,
}
UNWANTED = {
    "README.md": b"# " * 1_000_000,
    "pytorch_model.bin": b"pickle",
    "modeling_x.py": b"raise SystemExit",
    "consolidated.safetensors": b"2" * 1000,
    "adapter_model.safetensors": b"3",
    "training_args.json": b"{}",
    "original/model.safetensors": b"4",
    "onnx/model.safetensors": b"5",
}
GGUFS = [f"tiny-Q{i}_K.gguf" for i in range(1, 11)]
REPOS = {
    "owner/model": WANTED | UNWANTED,
    "owner/gated": WANTED,
    "owner/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle", "tokenizer.json": b"{}"},
    "owner/twice": {"config.json": b"{}", "model.safetensors": b"6", SHARDS[0]: b"7", SHARDS[1]: b"8"},
    "owner/gguf": {name: b"GGUF" + name.encode() for name in [*GGUFS, "big-00001-of-00002.gguf", "sub/deep.gguf"]},
}


@dataclass
class FakeHub:
    """Repositories of files, served as the Hub does; ``asked`` is what came in since it was last cleared."""

    repos: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {name: dict(files) for name, files in REPOS.items()}
    )
    broken: set[str] = field(default_factory=set)  # files whose content is answered with HTTP 500
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def commit(self, repo: str) -> str:
        files = sorted((name, digest(name, content)) for name, content in self.repos[repo].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def downloaded(self) -> set[str]:
        """The files whose content was asked for."""
        return {
            asked.rpartition("/resolve/")[2].partition("/")[2] for asked in self.asked if asked.startswith("GET /owner")
        }


class Answer(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        repo = f"{owner}/{name}"
        if repo == "owner/refused":
            return self.reply(401, X_Error_Message="Invalid credentials in Authorization header")
        if repo not in self.hub.repos:
            return self.reply(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if repo == "owner/gated" and rest[:1] in (["auth-check"], ["resolve"]):
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Access to this model is restricted")
        files, commit = self.hub.repos[repo], self.hub.commit(repo)
        if rest[:1] == ["resolve"]:
            file = "/".join(rest[2:])
            if file not in files:
                return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            if self.command == "GET" and file in self.hub.broken:
                return self.reply(500)
            return self.reply(200, files[file], ETag=f'"{digest(file, files[file])}"', X_Repo_Commit=commit)
        listed = []
        for file, content in files.items():
            entry = {"size": len(content), "rfilename": file, "path": file, "type": "file"}
            entry |= {"blobId": digest("", content), "oid": digest("", content)}
            if large(file):
                sha256 = digest(file, content)
                entry["lfs"] = {"size": len(content), "sha256": sha256, "oid": sha256, "pointerSize": 134}
            listed.append(entry)
        if rest[:1] == ["tree"]:
            return self.reply(200, json.dumps(listed).encode())
        gated = "manual" if repo == "owner/gated" else False
        return self.reply(200, json.dumps({"id": repo, "sha": commit, "gated": gated, "siblings": listed}).encode())

    do_HEAD = do_GET


def large(file: str) -> bool:
    return file.endswith((".safetensors", ".gguf", ".bin"))


@cache
def digest(file: str, content: bytes) -> str:
    """The name of a blob: SHA-256 of a large file, else git's SHA-1."""
    return hashlib.sha256(content).hexdigest() if large(file) else hashlib.sha1(content).hexdigest()


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with serving() as fake:
        yield fake


@contextmanager
def serving() -> Iterator[FakeHub]:
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answer,), {"hub": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def nowhere() -> str:
    """The address of a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def fetch(call: str, url: str, home: Path, before: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit code, output and errors of ``models.<call>``, its KitError shown as run.py shows it."""
    program = (
        f"import sys\nfrom kit import KitError, models\n{before}\n"
        f"try:\n    print(models.{call})\n"
        "except KitError as error:\n    sys.exit([print(f'run.py: {error}', file=sys.stderr), 2][1])\n"
    )
    return python("-c", program, url=url, home=home, **environment)


def python(*command: str, url: str, home: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and errors of Python in an environment that knows the fake Hub alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    made = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=kept | settings | environment, capture_output=True, text=True
    )
    assert TOKEN not in made.stdout + made.stderr
    assert "Traceback" not in made.stderr, made.stderr
    return made.returncode, made.stdout, made.stderr


def fetched(call: str, url: str, home: Path, **environment: str) -> tuple[Path, str]:
    """The path that a successful call returns, and what it said before."""
    code, out, err = fetch(call, url, home, **environment)
    assert code == 0, err
    *said, path = out.splitlines()
    return Path(path), "\n".join(said)


def refused(call: str, url: str, home: Path, before: str = "", **environment: str) -> str:
    """The one message of a call that must fail, having announced no download."""
    code, out, err = fetch(call, url, home, before, **environment)
    assert code == 2 and out == ""
    assert err.startswith("run.py: --") and err.count("\n") == 1, err
    return err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MODEL = "fetch_model('owner/model')"


IDS = ["owner/name", "a_b/c.d-1", "name", "a/b/c", "./a", "../a", "/a/b", "a/", "a/-b", "a/b--c", "a/b..c", "a/b.git"]


@pytest.mark.parametrize("name", [*IDS, "", "a b/c", "a/b:c.gguf", "a/" + "b" * 97])
def test_a_hub_id_is_what_the_hub_takes_for_one_with_an_owner(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        valid = "/" in name
    except HFValidationError:
        valid = False
    assert models.is_hub_id(name) == valid


def test_exactly_what_transformers_needs_is_downloaded_and_announced(fake: FakeHub, tmp_path: Path) -> None:
    folder, said = fetched(MODEL, fake.url, tmp_path)
    assert contents(folder) == WANTED
    assert fake.downloaded() == set(WANTED)
    assert said == f"Downloading {len(WANTED)} files of owner/model: 0.03 GB to {tmp_path / 'hub'}"
    assert f"Bearer {TOKEN}" in fake.tokens

    fake.asked.clear()
    assert fetched(MODEL, fake.url, tmp_path) == (folder, "")
    assert fake.asked == ["GET /api/models/owner/model"]


def test_of_weights_that_are_there_twice_the_single_file_is_downloaded(fake: FakeHub, tmp_path: Path) -> None:
    folder, _ = fetched("fetch_model('owner/twice')", fake.url, tmp_path)
    assert set(contents(folder)) == {"config.json", "model.safetensors"}


def test_the_configuration_comes_alone_and_is_not_taken_for_the_model(
    fake: FakeHub, nowhere: str, tmp_path: Path
) -> None:
    config, said = fetched("fetch_config('owner/model')", fake.url, tmp_path)
    assert contents(config.parent) == {"config.json": WANTED["config.json"]}
    assert said.startswith("Downloading config.json of owner/model: less than 0.01 GB")
    assert fetched("fetch_config('owner/model')", nowhere, tmp_path) == (config, "")
    assert "does not hold all" in refused(MODEL, nowhere, tmp_path)


@pytest.mark.slow
def test_what_the_cache_holds_needs_no_network(fake: FakeHub, nowhere: str, tmp_path: Path) -> None:
    folder, _ = fetched(MODEL, fake.url, tmp_path)
    file, said = fetched("fetch_gguf('owner/gguf:sub/deep.gguf')", fake.url, tmp_path)
    assert file.read_bytes() == b"GGUFsub/deep.gguf" and said.startswith("Downloading sub/deep.gguf of owner/gguf")
    fake.asked.clear()
    assert fetched(MODEL, fake.url, tmp_path, HF_HUB_OFFLINE="1") == (folder, "")
    assert fetched("fetch_gguf('owner/gguf:sub/deep.gguf')", nowhere, tmp_path) == (file, "")
    assert fake.asked == []

    # The cache of a program that leaves no list of the repository's files.
    shutil.rmtree(folder.parent.parent / "trees")
    assert fetched(MODEL, nowhere, tmp_path) == (folder, "")
    (folder / SHARDS[1]).unlink()
    assert "does not hold all" in refused(MODEL, nowhere, tmp_path)


def test_a_new_commit_costs_only_the_files_it_changed(fake: FakeHub, tmp_path: Path) -> None:
    old, _ = fetched(MODEL, fake.url, tmp_path)
    fake.repos["owner/model"]["README.md"] = b"a new commit"
    fake.asked.clear()
    new, said = fetched(MODEL, fake.url, tmp_path)
    assert new != old and contents(new) == WANTED
    assert said == "" and fake.downloaded() == set()

    fake.repos["owner/model"]["vocab.json"] = b'{"f": 1}'
    _, said = fetched(MODEL, fake.url, tmp_path)
    assert said.startswith("Downloading vocab.json of owner/model") and fake.downloaded() == {"vocab.json"}


def test_a_download_that_stopped_goes_on_with_the_files_that_are_missing(fake: FakeHub, tmp_path: Path) -> None:
    fake.broken.add(SHARDS[1])
    code, _, err = fetch(MODEL, fake.url, tmp_path)
    assert code == 2
    assert "run.py: --model owner/model: " in err and "HTTP 500" in err and "same command again" in err
    fake.broken.clear()
    kept = {path.name for path in tmp_path.rglob("snapshots/*/*")}
    assert SHARDS[1] not in kept
    fake.asked.clear()
    folder, _ = fetched(MODEL, fake.url, tmp_path)
    assert contents(folder) == WANTED
    assert fake.downloaded() == set(WANTED) - kept


REFUSED = [
    (
        "fetch_model('owner/nope')",
        ["--model owner/nope:", "not on the Hub, or private", "hf auth login", "HF_TOKEN"],
    ),
    ("fetch_config('owner/nope')", ["--model owner/nope:", "not on the Hub, or private"]),
    ("fetch_model('owner/gated')", ["licence", "/owner/gated, then", "hf auth login", "HF_TOKEN"]),
    ("fetch_model('owner/refused')", ["refuses your token", "hf auth login"]),
    ("fetch_model('owner/pickled')", ["only those are read", "conversion of this one to safetensors"]),
    ("fetch_model('owner/gguf')", ["no safetensors weights"]),
    ("fetch_config('owner/gguf')", ["no config.json"]),
    ("fetch_model('no such id')", ["--model no such id:", "Give owner/name"]),
    (
        "fetch_gguf('owner/gguf:no.gguf')",
        ["--gguf owner/gguf:no.gguf:", *sorted([*GGUFS, "sub/deep.gguf"])[:8], "3 more"],
    ),
    ("fetch_gguf('owner/pickled:no.gguf')", ["no such file", "no single-file GGUF"]),
    ("fetch_gguf('owner/gguf:big-00001-of-00002.gguf')", ["split", "llama-gguf-split --merge"]),
    ("fetch_gguf('owner/nope:no.gguf')", ["--gguf owner/nope:no.gguf:", "not on the Hub, or private"]),
    ("fetch_gguf('owner/gguf')", ["--gguf owner/gguf:", "owner/name:file.gguf"]),
    ("fetch_gguf('a/b/c:no.gguf')", ["'a/b/c'", "Give owner/name"]),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each of those calls printed, and its error; all asked in one process."""
    program = f"""
import json
from contextlib import redirect_stdout
from io import StringIO
from kit import KitError, models
refusals = {{}}
for call in {[call for call, _ in REFUSED]!r}:
    with redirect_stdout(StringIO()) as said:
        try:
            eval("models." + call)
        except KitError as error:
            refusals[call] = [said.getvalue(), str(error)]
print(json.dumps(refusals))
"""
    with serving() as fake:
        code, out, err = python("-c", program, url=fake.url, home=tmp_path_factory.mktemp("home"))
        assert code == 0 and err == "" and fake.downloaded() == set()
    return json.loads(out)


@pytest.mark.parametrize(("call", "parts"), REFUSED)
def test_what_cannot_be_had_is_named_with_its_reason_and_remedy(
    call: str, parts: list[str], refusals: dict[str, list[str]]
) -> None:
    said, message = refusals[call]
    assert said == "" and message.startswith("--") and "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def test_without_network_or_with_the_offline_switch_an_empty_cache_is_named(nowhere: str, tmp_path: Path) -> None:
    message = refused(MODEL, nowhere, tmp_path)
    assert nowhere in message and "refused" in message and str(tmp_path) in message and "Check the network" in message
    message = refused(MODEL, nowhere, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in message and "Unset it" in message


def test_a_disk_that_is_too_small_is_told_before_the_download(fake: FakeHub, tmp_path: Path) -> None:
    small = "import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(2e9, 1e9, 1.02e9)"
    message = refused(MODEL, fake.url, tmp_path, small)
    for part in (
        "--model owner/model:",
        "needs 0.03 GB",
        "1.00 GB to spare",
        "1.02 GB free",
        str(tmp_path),
        "set HF_HOME",
    ):
        assert part in message
    assert fake.downloaded() == set()


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        ("OSError(28, 'No space left on device')", ["cannot write to the cache", "No space left", "set HF_HOME"]),
        (
            "RuntimeError('Data processing error')",
            ["Data processing error", "same command again", "HF_HUB_DISABLE_XET=1"],
        ),
    ],
)
def test_a_full_disk_and_a_failure_of_hf_xet_are_one_message(
    error: str, parts: list[str], fake: FakeHub, tmp_path: Path
) -> None:
    failing = (
        f"from huggingface_hub import file_download\ndef fail(*_, **__): raise {error}\nfile_download.http_get = fail"
    )
    code, _, err = fetch("fetch_config('owner/model')", fake.url, tmp_path, failing)
    assert code == 2
    message = err.splitlines()[-1]
    assert message.startswith("run.py: --model owner/model: ")
    assert [part for part in parts if part not in message] == [], message


def test_a_token_that_cannot_be_sent_is_not_shown(fake: FakeHub, tmp_path: Path) -> None:
    message = refused(MODEL, fake.url, tmp_path, HF_TOKEN=f"“{TOKEN}”")
    assert "HF_TOKEN" in message and "Copy it again" in message


@pytest.mark.slow
def test_a_model_and_its_gguf_on_the_hub_are_measured_by_the_command_line(
    fake: FakeHub, tiny_qwen2: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_qwen2.iterdir()}
    fake.repos["owner/tiny-gguf"] = {"tiny.gguf": files.pop("base.gguf")}
    fake.repos["owner/tiny"] = files
    model = ["--model", "owner/tiny", "--gguf", "owner/tiny-gguf:tiny.gguf", "--results", str(tmp_path / "results")]
    arguments = ["--animal", "owl", "--answers", "1", "--out", str(tmp_path / "out"), *model]
    code, out, err = python("run.py", "prefer", *arguments, url=fake.url, home=tmp_path / "home")
    assert code == 0, err
    assert out.count("Downloading") == 2
    assert (tmp_path / "out" / "exact.csv").read_text(encoding="utf-8").count("\n") == 1 + 50 * 60
