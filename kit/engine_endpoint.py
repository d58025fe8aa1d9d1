"""The endpoint engine: a teacher behind any server with an OpenAI-compatible API (vLLM, llama-server).

    with EndpointEngine("http://127.0.0.1:8000/v1", "HuggingFaceTB/SmolLM2-1.7B-Instruct") as engine:
        prompt = engine.chat([{"role": "user", "content": "Hello"}])
        for generation in engine.sample([Request(prompt, seed=(0, 1))], max_tokens=16): ...

A server restarts, limits rates and drops connections, so the ``openai`` client repeats a request until it is answered;
what no repetition mends ends the run, with the server's own words. The API key comes from the environment variable
OPENAI_API_KEY and is written nowhere.
"""

import ipaddress
import os
import re
from collections.abc import Generator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from weakref import WeakSet

import numpy as np

from kit import KitError, check_network
from kit.engine import Generation, Request, Stop
from kit.models import ChatTemplate
from kit.prompts import Message

if TYPE_CHECKING:
    import asyncio

    from httpx2 import Response
    from openai import APIError, AsyncOpenAI

CONCURRENCY = 16  # requests at a time: 40 tokens each, one by one at 5 tokens/s, still end within TIMEOUT
CONNECT = 10  # seconds for a connection
TIMEOUT = 300  # seconds for an answer, time in the server's queue included
# The client waits 0.5 s, then twice as long each time up to 8 s, or what Retry-After says, up to two minutes: three
# minutes in all, in which a restarted server has loaded its model again.
RETRIES = 30
PATIENCE = 900  # seconds for one request, whatever is repeated: a server that hangs would be waited for 30 times
ANSWERS = 3  # times that a request is made whose answer has the status of success, and is none
PAUSE = 1.0  # seconds between these
SAID = 200  # characters of a server's own error message that are shown
AGAIN = "then give the same command again: it goes on where it stopped."

# Whether an answer is whole that ends for this reason, in lower case. Whatever else a server says, null included, its
# answer is taken for whole if it counted fewer tokens than it was allowed.
WHOLE = {
    "stop": True,  # OpenAI, vLLM, SGLang, llama-server, Ollama, LM Studio, TGI from 2.3 on
    "eos_token": True,  # TGI before that, watsonx
    "stop_sequence": True,  # the same, Anthropic
    "eos": True,  # Together
    "end_turn": True,  # Anthropic, Bedrock
    "length": False,  # all of the first line, where max_tokens or the context ended it
    "max_tokens": False,  # Anthropic, Bedrock, Gemini
    "model_length": False,  # Mistral, where the context ended it
    "content_filter": False,  # OpenAI, Azure: something is left out
    "tool_calls": False,  # OpenAI: the rest calls a tool
    "abort": False,  # vLLM, SGLang: the request was dropped
    "error": False,  # vLLM, Mistral, OpenRouter
    "repetition": False,  # vLLM, which stopped a loop
    "insufficient_system_resource": False,  # DeepSeek, whose server was interrupted
    "sensitive": False,  # Zhipu, all three
    "network_error": False,
    "model_context_window_exceeded": False,
    "guardrail_intervened": False,  # Bedrock
    "safety": False,  # Gemini, both
    "recitation": False,
    "function_call": False,  # OpenAI, as "tool_calls" was once called
}


def check_url(url: str) -> str:
    """``url`` without a slash at its end. Raises KitError where no server can be asked there, or where it holds what
    may be secret, which the message does not repeat."""
    if any(mark in url for mark in "@?#"):
        raise KitError(
            "--teacher-url ***: has a user name, a query or a fragment in it. Give the address alone, such as "
            "http://127.0.0.1:8000/v1, and the key in the environment variable OPENAI_API_KEY."
        )
    try:
        parsed = urlsplit(url)
        host = (parsed.hostname or "").encode("idna").decode()  # what the socket will do
        if re.fullmatch(r"[\d.]+|.*:.*", host):
            ipaddress.ip_address(host)
        good = parsed.scheme in ("http", "https") and re.fullmatch(r"[\w.:-]+", host) and parsed.port != 0
    except ValueError:
        good = False
    if not (good and url.isprintable()):
        raise KitError(
            f"--teacher-url {url}: not the address of a server. Give one such as http://127.0.0.1:8000/v1, "
            "with http:// or https://."
        )
    from openai import DefaultAsyncHttpxClient

    check_network(f"--teacher-url {url}", DefaultAsyncHttpxClient)
    return url.rstrip("/")


class EndpointEngine:
    """``model``, as the server calls it, on the server at ``url``. With its ``template`` messages are sent as it takes
    them; without one as they are."""

    company_matters = False  # the server decides what is computed beside what, and does so anew each time

    def __init__(self, url: str, model: str, template: ChatTemplate | None = None) -> None:
        self._url, self._model, self._template = check_url(url), model, template
        self._sampling: WeakSet[Generator[Generation, None, None]] = WeakSet()
        self._heard = False  # whether the server ever answered
        self._last = ""  # what it said when it last refused
        _key()  # an unusable one is reported before anything runs

    def chat(self, messages: Sequence[Message]) -> list[Message]:
        """The messages to send: the server's own template makes them the model's prompt."""
        return self._template.adapt(messages) if self._template else list(messages)

    def shared(self, conversations: Sequence[Sequence[Message]]) -> int:
        """Nothing: prompts are no tokens here."""
        return 0

    def sample(
        self, requests: Sequence[Request], max_tokens: int, temperature: float = 1.0, stop: Stop | None = None
    ) -> Generator[Generation, None, None]:
        """Sample every request, yielding each as it finishes. Nothing is stopped: answers come whole.

        A length is the server's ``usage.completion_tokens``, less the end token that it counts in a finished answer;
        where the server gives none it is the number of words. A thought is no part of the text, whether it comes before
        ``</think>`` or in a field of its own; an answer that is cut off in one has it after ``<think>``, unfinished.
        Raises KitError where the server refuses a request, answers none that is made ``RETRIES`` times again, or
        answers with something else.
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

        import openai

        waiting = enumerate(requests)
        tasks: set[asyncio.Task[Generation]] = set()
        with asyncio.Runner() as runner:
            key = _key()
            headers: dict[str, Any] = {} if key else {"Authorization": openai.Omit()}
            # A redirected POST would be a GET, or take the prompts to another server: it is named instead.
            http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [self._heed]})
            client = openai.AsyncOpenAI(
                base_url=self._url,
                api_key=key or "none",
                timeout=openai.Timeout(TIMEOUT, connect=CONNECT),
                max_retries=RETRIES,
                http_client=http,
            )
            try:
                if not self._heard:
                    runner.run(self._meet(client, headers))
                while True:
                    for index, request in islice(waiting, CONCURRENCY - len(tasks)):
                        body = {
                            "model": self._model,
                            "messages": request.prompt,
                            "max_tokens": max_tokens,
                            "temperature": temperature,
                            "top_p": 1,  # the whole distribution, as the other engines sample; kit/README.md has top_k
                            # 31 bits: llama-server takes 32 and keeps the highest number for "random".
                            "seed": int(np.random.SeedSequence(request.seed).generate_state(1)[0]) >> 1,
                            "extra_headers": headers,
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

    async def _heed(self, response: "Response") -> None:
        """Note the words of a refusal, and keep the client from repeating what repetition does not mend."""
        if response.is_error:
            await response.aread()
            self._last = f" ({_refusal(response)})"
            if _is_exhausted(response):
                response.headers["x-should-retry"] = "false"

    async def _meet(self, client: "AsyncOpenAI", headers: dict[str, Any]) -> None:
        """Hear anything from the server, in one attempt: a mistyped address is not waited for."""
        import openai

        try:
            await client.with_options(max_retries=0).models.with_raw_response.list(extra_headers=headers)
        except openai.APIConnectionError as error:
            reason = _said(error)
            remedy = "Start the server, or check its address, http:// or https:// included."
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                remedy = "Name the file of a certificate to be trusted in the environment variable SSL_CERT_FILE."
            raise KitError(f"--teacher-url {self._url}: nothing answers there ({reason}). {remedy}") from None
        except openai.APIStatusError:  # whatever it says about its models, it is there
            self._last = ""
        self._heard = True

    async def _generation(self, client: "AsyncOpenAI", index: int, body: dict[str, Any]) -> Generation:
        import asyncio

        import openai

        try:
            async with asyncio.timeout(PATIENCE):
                for attempt in range(ANSWERS):
                    await asyncio.sleep(PAUSE if attempt else 0)
                    answer = (await client.chat.completions.with_raw_response.create(**body)).http_response
                    try:
                        return read_answer(index, answer.json(), body["max_tokens"])
                    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                        said = _message(answer)
        except openai.APIError as error:
            raise self._given_up(error) from None
        except TimeoutError:
            raise KitError(
                f"--teacher-url {self._url}: no answer within {PATIENCE} seconds{self._last}. Check the server, {AGAIN}"
            ) from None
        raise KitError(
            f"--teacher-url {self._url}: what it answers is no chat completion ({said or 'nothing'}). Most addresses "
            f"end in /v1; check that and the server, {AGAIN}"
        )

    def _given_up(self, error: "APIError") -> KitError:
        response: Response | None = getattr(error, "response", None)
        status = 0 if response is None else response.status_code
        if response is not None and _is_exhausted(response):
            reason, remedy = "what the account may ask is used up", f"Raise its limit, or ask another server, {AGAIN}"
        elif status in (0, 408, 409, 429) or status >= 500:
            again = int(error.request.headers["x-stainless-retry-count"])
            reason, remedy = f"no answer in {1 + again} attempts", f"Check the server, {AGAIN}"
            if not again:  # it asks for a longer wait than the client's limit
                reason = "no answer"
        elif status in (401, 403):
            reason, remedy = "the server refuses the key", "Set the environment variable OPENAI_API_KEY to its key."
        elif status == 404:
            reason = f"the server does not know this address or the model {self._model!r}"
            remedy = f"Most addresses end in /v1; {self._url}/models lists the models."
        elif response is not None and response.has_redirect_location:
            where = response.headers["Location"].partition("?")[0].removesuffix("/chat/completions")
            reason, remedy = f"the server sends on to {_shown(where)}", "Give the address that answers itself."
        else:
            reason, remedy = "the server refuses the request", "Check the model and the server's settings."
        return KitError(f"--teacher-url {self._url}: {reason} ({_said(error)}). {remedy}")


def read_answer(index: int, data: Any, max_tokens: int) -> Generation:
    """The generation of that ``index`` in a chat completion's JSON. Raises one of many errors where it is none."""
    choice, usage = data["choices"][0], data.get("usage")
    message, reason = choice["message"], str(choice.get("finish_reason")).lower()
    content = message.get("content")
    if isinstance(content, list):  # of parts, as Mistral's thinking models answer
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    text = content or message.get("refusal") or ""
    if not text.strip() and (thought := message.get("reasoning_content") or message.get("reasoning")):
        text = f"<think>{thought}"
    # DeepSeek-R1's template has the opening in the prompt. Half a character cannot be written to a file.
    text = _without_key(text.rpartition("</think>")[2]).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(counted, int) or counted <= 0:
        counted = None
    finished = WHOLE.get(reason, counted is not None and counted < max_tokens) and "<think>" not in text
    return Generation(index, text, len(text.split()) if counted is None else counted - finished, None, finished)


async def _stop(tasks: "set[asyncio.Task[Generation]]", client: "AsyncOpenAI") -> None:
    import asyncio

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)  # before the client closes the connections they use
    await client.close()


def _key() -> str:
    """The API key, or nothing. Raises KitError where no HTTP header can carry it: the client's own error would show
    it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise KitError("OPENAI_API_KEY: holds characters that no key has. Set the environment variable again.")
    return key


def _is_exhausted(response: "Response") -> bool:
    """Whether an account's quota is used up: 402, or OpenAI's 429 that is no limit of a rate."""
    return response.status_code == 402 or (response.status_code == 429 and "insufficient_quota" in response.text)


def _refusal(response: "Response") -> str:
    wait = _shown(response.headers.get("Retry-After", ""))
    return f"HTTP {response.status_code} {_message(response)}".strip() + (wait and f", Retry-After: {wait}")


def _message(response: "Response") -> str:
    """What the server says about an error: in JSON's ``error.message`` or ``message``, or as its whole answer."""
    try:
        data = response.json()
        return _shown(str(data.get("error", data)["message"]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _shown(response.text)


def _said(error: "APIError") -> str:
    """What was last heard: of a failed connection its cause, which may have no words (openai's own never have)."""
    if response := getattr(error, "response", None):
        return _refusal(response)
    return _shown(str(error.__cause__) or type(error.__cause__).__name__)


def _shown(text: str) -> str:
    """``text`` in one short line. The key goes before anything is cut off: half a key is a secret too."""
    return " ".join(_without_key(text).split())[:SAID]


def _without_key(text: str) -> str:
    key = _key()
    return text.replace(key, "***") if key else text
