"""The endpoint engine: a teacher behind any server with an OpenAI-compatible API (vLLM, llama-server).

    with EndpointEngine("http://127.0.0.1:8000/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct") as engine:
        prompt = engine.chat([{"role": "user", "content": "Hello"}])
        for generation in engine.sample([Request(prompt, seed=(0, 1))], max_tokens=16): ...

A server restarts, limits rates and drops connections, so a request is repeated until its answer is whole; only what no
repetition mends ends the run. The API key comes from the environment variable OPENAI_API_KEY and is written nowhere.
"""

import os
from collections.abc import Generator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np

from kit import KitError, check_network
from kit.engine import Generation, Request
from kit.models import ChatTemplate
from kit.prompts import Message

if TYPE_CHECKING:
    import asyncio

    import httpx
    from tenacity import RetryCallState

CONCURRENCY = 16  # requests at a time: 40 tokens each, one by one at 5 tokens/s, still end within TIMEOUT
CONNECT = 10  # seconds for a connection
TIMEOUT = 300  # seconds for a whole answer, time in the server's queue included
ATTEMPTS = 9  # with the waits below three minutes in all, in which a restarted server has loaded its model again
FIRST_WAIT = 1.0  # seconds before the second attempt, twice as many before each later one; also the range of the jitter
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After says: rates are limited per minute
TEMPORARY = (408, 409, 425, 429)  # HTTP statuses that call for another attempt, beside 5xx
SAID = 200  # characters of a server's own error message that are shown


def check_url(url: str) -> str:
    """``url`` without a slash at its end. Raises KitError where no server can be asked there, or where it holds what
    may be secret, which the message does not repeat."""
    import httpx

    if any(mark in url for mark in "@?#"):
        raise KitError(
            "--teacher-url ***: has a user name, a query or a fragment in it. Give the address alone, such as "
            "http://127.0.0.1:8000/v1, and the key in the environment variable OPENAI_API_KEY."
        )
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")  # what the socket will do
        good = parsed.scheme in ("http", "https") and parsed.host and (parsed.port is None or 0 < parsed.port < 65536)
    except (httpx.InvalidURL, UnicodeError):
        good = False
    if not good:
        raise KitError(
            f"--teacher-url {url}: not the address of a server. Give one such as http://127.0.0.1:8000/v1, "
            "with http:// or https://."
        )
    check_network(f"--teacher-url {url}", httpx.AsyncClient)
    return url.rstrip("/")


class EndpointEngine:
    """``model``, as the server calls it, on the server at ``url``. With its ``template`` messages are sent as it takes
    them; without one as they are."""

    company_matters = False  # the server decides what is computed beside what, and does so anew each time

    def __init__(self, url: str, model: str, template: ChatTemplate | None = None) -> None:
        self._url, self._model, self._template = check_url(url), model, template
        self._sampling: WeakSet[Generator[Generation, None, None]] = WeakSet()
        self._heard = False  # whether the server ever answered: a mistyped address is not tried again
        _key()  # an unusable one is reported before anything runs

    def chat(self, messages: Sequence[Message]) -> list[Message]:
        """The messages to send: the server's own template makes them the model's prompt."""
        return self._template.adapt(messages) if self._template else list(messages)

    def sample(
        self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0
    ) -> Generator[Generation, None, None]:
        """Sample every request, yielding each as it finishes.

        A length is the server's ``usage.completion_tokens``, less the end token that it counts in a finished answer;
        where the server gives none it is the number of words. Raises KitError where the server refuses a request, or
        has not answered it in ``ATTEMPTS`` attempts.
        """
        sampling = self._sample(requests, max_tokens, temperature)
        self._sampling.add(sampling)
        return sampling

    def close(self) -> None:
        """Give up what is still asked, which the traceback of an exception in a loop over ``sample`` keeps alive."""
        for sampling in list(self._sampling):
            sampling.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sample(
        self, requests: Sequence[Request], max_tokens: int, temperature: float
    ) -> Generator[Generation, None, None]:
        import asyncio

        import httpx

        key = _key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        waiting = enumerate(requests)
        tasks: set[asyncio.Task[Generation]] = set()
        with asyncio.Runner() as runner:
            client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(None, connect=CONNECT))
            try:
                while True:
                    for index, request in islice(waiting, CONCURRENCY - len(tasks)):
                        body = {
                            "model": self._model,
                            "messages": request.prompt,
                            "max_tokens": max_tokens,
                            "temperature": temperature,
                            "top_p": 1,  # the whole distribution, as the other engines sample; see README for top_k
                            # 31 bits: llama-server takes 32 and keeps the highest number for "random".
                            "seed": int(np.random.SeedSequence(request.seed).generate_state(1)[0]) >> 1,
                        }
                        tasks.add(runner.get_loop().create_task(self._generation(client, index, body)))
                    if not tasks:
                        return
                    done, _ = runner.run(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
                    for task in done:
                        tasks.remove(task)
                        yield task.result()
            finally:
                runner.run(_stop(tasks, client))

    async def _generation(self, client: "httpx.AsyncClient", index: int, body: dict[str, Any]) -> Generation:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Unanswered), stop=stop_after_attempt(ATTEMPTS), wait=_pause, reraise=True
        )
        try:
            return await retrying(self._attempt, client, index, body)
        except _Unanswered as error:
            raise KitError(
                f"--teacher-url {self._url}: no answer in {ATTEMPTS} attempts, the last time because of: {error}. "
                "Check the server, then give the same command again: it goes on where it stopped."
            ) from None

    async def _attempt(self, client: "httpx.AsyncClient", index: int, body: dict[str, Any]) -> Generation:
        import asyncio

        import httpx

        try:
            async with asyncio.timeout(TIMEOUT):
                response = await client.post(f"{self._url}/chat/completions", json=body)
        except TimeoutError:
            raise _Unanswered(f"nothing within {TIMEOUT} seconds") from None
        except httpx.RequestError as error:
            if isinstance(error, httpx.ConnectError) and not self._heard:
                raise KitError(
                    f"--teacher-url {self._url}: nothing answers there ({_shown(str(error))}). "
                    "Start the server, or check its address."
                ) from None
            raise _Unanswered(_shown(str(error) or type(error).__name__)) from None
        self._heard = True
        if not response.is_success:
            raise self._refusal(response)
        try:
            data = response.json()
            choice = data["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
            counted = (data.get("usage") or {}).get("completion_tokens")
            (text + reason).encode()  # fails unless both are text, and such as a file takes: no half surrogate pair
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Unanswered("no JSON with choices[0].message.content and finish_reason") from None
        finished = reason == "stop"
        length = counted - finished if isinstance(counted, int) and counted > 0 else len(text.split())
        return Generation(index, text, length, None, finished)

    def _refusal(self, response: "httpx.Response") -> Exception:
        status = response.status_code
        said = f"HTTP {status} {_message(response)}".strip()
        if status in TEMPORARY or status >= 500:
            wait = response.headers.get("Retry-After", "")
            return _Unanswered(said, float(wait) if wait.isdecimal() else 0)
        reason, remedy = "the server refuses the request", "Check the model and the server's settings."
        if status in (401, 403):
            reason, remedy = "the server refuses the key", "Set the environment variable OPENAI_API_KEY to its key."
        elif status == 404:
            reason = f"the server does not know this address or the model {self._model!r}"
            remedy = f"Most addresses end in /v1; {self._url}/models lists the models."
        return KitError(f"--teacher-url {self._url}: {reason} ({said}). {remedy}")


class _Unanswered(Exception):
    """Why an attempt brought no answer where another one may, and after how many seconds the server wants it."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


def _pause(state: "RetryCallState") -> float:
    """Seconds before the next attempt."""
    from tenacity import wait_exponential, wait_random

    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _Unanswered) else 0
    backoff = wait_exponential(FIRST_WAIT, LONGEST_WAIT)(state)
    return max(backoff, min(asked, LONGEST_WAIT)) + wait_random(0, FIRST_WAIT)(state)


async def _stop(tasks: "set[asyncio.Task[Generation]]", client: "httpx.AsyncClient") -> None:
    import asyncio

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)  # before the client closes the connections they use
    await client.aclose()


def _key() -> str:
    """The API key, or nothing. Raises KitError where no HTTP header can carry it: httpx's own error would show it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise KitError("OPENAI_API_KEY: holds characters that no key has. Set the environment variable again.")
    return key


def _message(response: "httpx.Response") -> str:
    """What the server says about an error: in JSON's ``error.message`` or ``message``, or as its whole answer."""
    try:
        data = response.json()
        return _shown(str(data.get("error", data)["message"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return _shown(response.text)


def _shown(text: str) -> str:
    """``text`` in one short line. The key goes before anything is cut off: half a key is a secret too."""
    key = _key()
    return " ".join((text.replace(key, "***") if key else text).split())[:SAID]
