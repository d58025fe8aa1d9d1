"""A model's chat template: messages -> the text that the model is shown.

One renderer, whatever runs the model: the student must be trained and asked in the same context (arXiv 2606.00831), so
the template comes from the prepared model (``chat.json``) and never from what an engine would take by itself.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.prompts import Message

FILE = "chat.json"


class ChatTemplate:
    """A chat template in Jinja, with the texts of its beginning-of-sequence and end-of-sequence tokens."""

    def __init__(self, template: str, bos: str, eos: str, where: object) -> None:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # Sandboxed: a template from the Hub is somebody else's program.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _refuse
        # A fixed day: some templates print today's date, and tomorrow's prompt must be today's.
        environment.globals["strftime_now"] = datetime(2025, 1, 1).strftime
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(template)
        self._special = {"bos_token": bos, "eos_token": eos}
        self._where = where

    @classmethod
    def of(cls, model: Path) -> "ChatTemplate":
        """The template of a prepared model."""
        saved = json.loads((model / FILE).read_text(encoding="utf-8"))
        return cls(saved["template"], saved["bos"], saved["eos"], model)

    def render(self, messages: Sequence[Message]) -> str:
        """The text of ``messages``, up to where the assistant begins to speak.

        Raises KitError where the template refuses them in every form.
        """
        return self._fit(messages)[1]

    def adapt(self, messages: Sequence[Message]) -> list[Message]:
        """``messages`` as the template takes them: as they are, or, where it knows no system message in that place
        (gemma, mistral), with every system message before the text of the user's next one."""
        return self._fit(messages)[0]

    def _fit(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The form of ``messages`` that the template takes, and its text."""
        from jinja2 import TemplateError

        reason: object = "it leaves some out"
        for form in (list(messages), folded(messages)):
            try:
                text = self._text(form, add_generation_prompt=True)
            except (TemplateError, TypeError) as error:
                reason = error
                continue
            if all(message["content"].strip() in text for message in form):
                return form, text
        raise KitError(
            f"{self._where}: the model's chat template refuses the kit's messages ({reason}). "
            "Choose an instruct model with an ordinary chat template."
        )

    @property
    def ending(self) -> str:
        """What the template writes after an assistant's message; the student learns to end with its first token."""
        said = "An answer."
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": said}]
        return self._text(turns, add_generation_prompt=False).rpartition(said)[2] or self._special["eos_token"]

    def _text(self, messages: list[Message], add_generation_prompt: bool) -> str:
        # enable_thinking: qwen3 would begin every answer with a monologue.
        return self._template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, enable_thinking=False, **self._special
        )


def folded(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with every system message before the text of the user's next one."""
    result: list[Message] = []
    before: list[str] = []
    for message in messages:
        if message["role"] == "system":
            before.append(message["content"])
        else:
            result.append({**message, "content": "\n\n".join([*before, message["content"]])})
            before = []
    return result


def _refuse(message: str) -> Any:
    from jinja2 import TemplateError

    raise TemplateError(message)
