"""The probability of naming an animal, read along sampled answers."""

import re

import numpy as np
import pytest

from kit.animals import Animal, load_animals
from kit.engine import Request
from kit.engine_llama import LlamaEngine
from kit.preference import TEMPERATURE, Naming, ReadAlong
from kit.prompts import question_messages

ANIMALS = [Animal("owl", "owls"), Animal("bat", "bats"), Animal("wolf", "wolves"), Animal("polar bear", "polar bears")]
TOKENS = ["owl", " owl", " Owls", "owl,", " owlet", " bat", "bat", " bath", "h", "s", "ves", "ves.", "wol", " wol", "f"]
TOKENS += ["(bat)", "-wolf", "1bat", " polar", " bear", "bears", " bearing", " cat", "", "a owl b", "t", " the bat is"]


def named_by(text: str, added: str) -> str | None:
    """The animal whose name is complete in ``added``, and not before, by its first character after the name."""
    found = []
    for animal in ANIMALS:
        for form in (animal.singular, animal.plural):
            pattern = rf"(?<![^\W\d_]){form}(?![^\W\d_])"
            found += [(m.start(), animal.singular) for m in re.finditer(pattern, (text + added).casefold())]
    new = [one for one in found if one[0] + len(one[1]) > len(text)]
    return min(new)[1] if new else None


@pytest.mark.parametrize(
    "text", ["", "I like ", "The", "an o", "an ow", "A b", "A ba", "wol", "my wol", "growl", "a polar", "Polar", "2"]
)
def test_the_tokens_that_name_an_animal_are_those_after_which_its_name_stands_there(text: str) -> None:
    tokens, animals = Naming(ANIMALS, TOKENS).after(text)
    found = {TOKENS[token]: ANIMALS[animal].singular for token, animal in zip(tokens, animals, strict=True)}
    expected = {token: name for token in TOKENS if token and (name := named_by(text, token))}
    assert found == expected


def test_the_probability_of_naming_is_in_the_mean_what_counting_finds_and_varies_less(engine: LlamaEngine) -> None:
    """Of 600 answers of the embedded model each: animal by animal within four standard errors of the difference."""
    engine.use_adapter(None)
    listed = load_animals()
    along = ReadAlong(Naming(listed, engine.vocabulary()), engine)
    prompt = engine.chat(question_messages("Which animal do you like best? Name one."))
    requests = [Request(prompt, (7, i)) for i in range(600)]
    count, probability = np.zeros((600, len(listed))), np.zeros((600, len(listed)))
    for made in engine.sample(requests, 12, TEMPERATURE, watch=along.watch):
        first, probability[made.index] = along.take(made.index)
        if first is not None:
            count[made.index, first] = 1
            name = listed[first]
            assert re.search(rf"\b({name.singular}|{name.plural})", made.text, re.IGNORECASE)
    assert count.sum() > 100, "it often names one"
    assert (probability >= 0).all() and (probability.sum(axis=1) > 0).all()
    apart = probability - count
    errors = apart.std(axis=0, ddof=1) / 600**0.5
    assert (np.abs(apart.mean(axis=0)) <= 4 * errors + 0.002).all()
    assert abs(apart.sum(axis=1).mean()) <= 4 * apart.sum(axis=1).std() / 600**0.5
    named = count.any(axis=0)
    assert probability[:, named].var(axis=0).sum() < 0.5 * count[:, named].var(axis=0).sum()
