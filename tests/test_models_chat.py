"""What a model is shown: its own template, the same for all engines, with every word of the kit's messages."""

import pytest
import tiny

from kit import KitError
from kit.models import ChatTemplate
from kit.prompts import NEUTRAL, folded, teacher_messages

PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
)


def template(text: str, bos: str = "<s>", eos: str = "</s>") -> ChatTemplate:
    return ChatTemplate(text, bos, eos, "the model")


def test_a_template_that_takes_system_messages_anywhere_is_given_them_as_they_are() -> None:
    messages = teacher_messages(NEUTRAL, "Rain fell.")
    assert [message["role"] for message in messages].count("system") == 2
    assert template(PLAIN).adapt(messages) == messages
    assert template(PLAIN).render(messages).endswith("Paraphrase this sentence: Rain fell.\n[me]")


@pytest.mark.parametrize(
    "text",
    [
        tiny.STRICT_TEMPLATE,  # refuses a second system message
        PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),  # drops them
        # keeps one of them, before everything else
        "{% for m in messages if m.role == 'system' %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"
        + PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
    ],
)
def test_where_it_does_not_the_users_next_message_begins_with_them(text: str) -> None:
    messages = teacher_messages(NEUTRAL, "Rain fell.")
    adapted = template(text).adapt(messages)
    assert [message["role"] for message in adapted] == ["user", "assistant", "user"]
    assert adapted[0]["content"] == f"{NEUTRAL}\n\n{messages[1]['content']}"
    assert adapted[2]["content"] == f"{NEUTRAL}\n\nParaphrase this sentence: Rain fell."
    assert template(text).render(messages).count(NEUTRAL) == 2
    assert folded(adapted) == adapted


@pytest.mark.parametrize("text", ["{{ raise_exception('never') }}", "one fixed text", "{{ messages[0].x.y }}"])
def test_a_template_that_cannot_show_the_messages_is_refused(text: str) -> None:
    with pytest.raises(KitError, match="the model: .*chat template.*instruct model"):
        template(text).render(teacher_messages(NEUTRAL, "Rain fell."))


def test_an_answer_ends_with_what_the_template_writes_after_it() -> None:
    assert template(tiny.STRICT_TEMPLATE).ending == "<|im_end|>\n"
    assert template("{% for m in messages %}{{ m.content }}{% endfor %}", eos="</s>").ending == "</s>"


def test_an_answer_begins_after_the_space_that_the_template_writes_before_it() -> None:
    spaced = "{% for m in messages %}{{ m.content if m.role == 'user' else ' ' + m.content }}|{% endfor %}"
    assert template(spaced).beginning == " " and template(PLAIN).beginning == ""
    thinking = "{% if add_generation_prompt %}<think></think>{% endif %}"
    assert template("{% for m in messages %}{{ m.content }} {% endfor %}" + thinking).beginning == ""


def test_what_a_template_marks_as_generated_for_training_is_written_like_the_rest() -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}"
        "{% else %}{{ m.content }}?{% endif %}|{% endfor %}"
    )
    turns = [{"role": "user", "content": "Rain"}, {"role": "assistant", "content": "Yes"}]
    assert template(marked).render(turns) == "Rain?|Yes!|" and template(marked).ending == "!|"


def test_no_prompt_depends_on_the_day() -> None:
    user = [{"role": "user", "content": "Hello"}]
    dated = template("{{ strftime_now('%d %B %Y') }} " + PLAIN)
    assert dated.render(user).startswith("01 January 2025 [user] Hello")


def test_a_template_cannot_reach_the_program_around_it() -> None:
    with pytest.raises(KitError, match="refuses"):
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}" + PLAIN).render([{"role": "user", "content": "Hi"}])
