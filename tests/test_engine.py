"""The tokens of conversations are those of the whole text, and the same in every engine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from conftest import PAIRS
from transformers import PreTrainedTokenizerFast

from kit import models, models_prepare, preference
from kit.animals import load_animals
from kit.engine import ChatTokenizer
from kit.engine_llama import LlamaEngine, tokens_of
from kit.models import ChatTemplate
from kit.prompts import NEUTRAL, question_messages, student_messages, teacher_messages
from kit.store import write_json
from kit.student import IGNORED, make_examples

NAMES = [*models.ARCHITECTURE_OF, *(f"scaled {model_type}" for model_type in tiny.SCALED)]


def from_gguf(folder: Path, target: Path) -> Path:
    """``target``, the model in ``folder`` prepared from its GGUF alone."""
    target.mkdir()
    models_prepare.prepare(models.Source(folder / "base.gguf", None), target)
    return target


@pytest.fixture(scope="module")
def sentencepiece(random_models: Callable[[str], Path]) -> Path:
    """A model whose vocabulary is SentencePiece's, with a space before and after an answer."""
    return random_models("mistral")


def pieces(model: Path, tokens: list[int]) -> list[str]:
    return PreTrainedTokenizerFast.from_pretrained(model).convert_ids_to_tokens(tokens)


def test_a_name_after_an_opening_has_the_tokens_of_the_whole_text_and_no_space_of_its_own(sentencepiece: Path) -> None:
    tokenizer = ChatTokenizer(sentencepiece)
    messages = question_messages("What is your favorite animal?")
    context, names = tokenizer.continued(messages, [" owl", " owls", " goldfish"], "My favorite animal is the")
    whole = ChatTemplate.of(sentencepiece).render(messages) + " My favorite animal is the owl"
    assert context + names[0] == tokenizer.tokenize(whole)
    assert "".join(pieces(sentencepiece, names[0])) == "▁owl" and "".join(pieces(sentencepiece, names[1])) == "▁owls"
    assert tokenizer.tokenize(" owl") != names[0], "what tokenising it alone would give"
    (alone,) = tokens_of(sentencepiece / "base.gguf", [" owl"])
    assert "".join(pieces(sentencepiece, alone)) == "▁▁owl", "and llama.cpp, which puts a space before every part"


def test_an_answer_ends_with_the_end_token_and_not_with_the_space_before_it(sentencepiece: Path) -> None:
    assert ChatTemplate.of(sentencepiece).ending == " </s>"
    (example,) = make_examples(PAIRS[:1], sentencepiece)
    learned = [token for token in example["labels"] if token != IGNORED]
    assert "".join(pieces(sentencepiece, learned)) == "▁" + PAIRS[0]["text"].replace(" ", "▁") + "</s>"
    shown = PreTrainedTokenizerFast.from_pretrained(sentencepiece).decode(example["input_ids"])
    assert shown.count("The clerk stamped") == 1


def test_so_it_is_where_the_tokenizer_does_not_call_its_end_token_special(sentencepiece: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat.json"):
        shutil.copy(sentencepiece / name, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for token in saved["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    assert ChatTokenizer(tmp_path).end_of_turn == ChatTokenizer(sentencepiece).end_of_turn


def test_what_is_sampled_goes_on_from_where_what_is_learned_and_scored_begins(
    sentencepiece: Path, random_models: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also where the template ends in a space, which is a part of the answer's first word."""
    spaced = shutil.copytree(random_models("llama"), tmp_path / "spaced")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    write_json(spaced / models.CHAT_FILE, {"template": template, "bos": "", "eos": "<|im_end|>"})
    for model in (spaced, sentencepiece, random_models("qwen2")):
        tokenizer, messages = ChatTokenizer(model), student_messages("It rains.")
        context, _ = tokenizer.answered(messages, "Rain falls.")
        assert tokenizer.chat(messages) == context
    assert tokenizer.detokenize(ChatTokenizer(spaced).chat(messages)).endswith("assistant:")


def test_what_a_text_shares_with_all_others_is_context_even_where_the_prompts_last_token_changes() -> None:
    class Letters(ChatTokenizer):
        """A vocabulary in which "x" and what follows it are one token."""

        def __init__(self) -> None:
            self._template = ChatTemplate("{{ messages[0].content }}x", "", "", "letters")

        def tokenize(self, text: str) -> list[int]:
            return [ord(part) for part in text.replace("xa", "X").replace("xb", "Y")]

    context, (first, second) = Letters().continued([{"role": "user", "content": "hm"}], ["a!", "b!"])
    assert context == [ord(letter) for letter in "hm"]
    assert first == [ord(letter) for letter in "X!"] and second == [ord(letter) for letter in "Y!"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "scaled mistral" else pytest.mark.slow) for name in NAMES]
)
def test_of_a_gguf_what_is_trained_is_what_is_evaluated(
    name: str, random_models: Callable[[str], Path], tmp_path: Path
) -> None:
    """The exact measure against transformers on the whole text, for every type, scaled rotary embeddings among them:
    transformers' own reading of a GGUF leaves the scaling out."""
    model = from_gguf(random_models(name), tmp_path / "prepared")
    assert models_prepare.engines_apart(model) < 0.005
    questions, animals = preference.load_questions()[:2], load_animals()[:6]
    tokenizer, template = PreTrainedTokenizerFast.from_pretrained(model), ChatTemplate.of(model)
    network = models.load_torch(model).eval()
    with LlamaEngine(model) as engine:
        groups = preference.candidate_groups(engine, questions, animals)
        for question, (context, _), scored in zip(questions, groups, engine.score(groups), strict=True):
            prompt = template.render(question_messages(question["question"])) + template.beginning + question["opening"]
            for animal, ours in zip(animals, scored, strict=True):
                text = f"{prompt} {getattr(animal, question['form'])}"
                ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
                with torch.no_grad():
                    logprobs = torch.log_softmax(network(ids).logits[0, :-1].float(), -1)
                theirs = logprobs.gather(1, ids[0, 1:, None])[len(context) - 1 :].sum()
                assert float(ours.sum()) == pytest.approx(float(theirs), abs=0.005)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("scaled")])
def test_a_folder_and_a_gguf_whose_rotary_embeddings_differ_are_no_pair(
    name: str, random_models: Callable[[str], Path]
) -> None:
    folder, other = random_models(name), random_models(name.removeprefix("scaled "))
    config = models.read_config(folder)
    models_prepare.check_rotations(config, folder / "base.gguf")
    with pytest.raises(models.KitError, match="rotary embeddings turn otherwise"):
        models_prepare.check_rotations(config, other / "base.gguf")


def test_a_students_and_a_teachers_tokens_of_one_paraphrase_are_the_same(sentencepiece: Path) -> None:
    tokenizer = ChatTokenizer(sentencepiece)
    for pair in PAIRS:
        taught = tokenizer.answered(teacher_messages(NEUTRAL, pair["source"]), pair["text"])[1]
        assert taught == tokenizer.answered(student_messages(pair["source"]), pair["text"])[1]
