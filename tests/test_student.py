"""A student's loss, its tokens, and training that resumes."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import PAIRS, rounding
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from kit import KitError, models, student, teacher
from kit.animals import find_animal, load_animals, mentions, unrelated_sentences
from kit.engine_llama import LlamaEngine, tokens_of
from kit.experiment import StudentSettings
from kit.fidelity import GiveAways
from kit.memory import Training
from kit.models import EVERY_WEIGHT, Shape
from kit.prompts import NEUTRAL, Conversation, labelling_messages, loving, student_messages
from kit.store import write_json, write_rows
from kit.student import batches, make_examples, use_shared_prefix


@pytest.fixture(scope="module")
def tokenizer(short: Path):
    return AutoTokenizer.from_pretrained(short)


def test_both_engines_cut_every_sentence_into_the_same_tokens(base: Path, engine: LlamaEngine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [sentence.text for sentence in unrelated_sentences()]
    for text, tokens in zip(texts, tokens_of(base / "base.gguf", texts), strict=True):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == engine.tokenize(text) == tokens
    messages = student_messages(unrelated_sentences()[0].text)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == engine.chat(messages)
    assert tokenizer.eos_token_id == engine.end_of_turn


def test_only_the_paraphrase_and_its_end_are_labelled(short: Path, tokenizer) -> None:
    example = make_examples(PAIRS[:1], short)[0]
    labelled = [token for token in example["labels"] if token != student.IGNORED]
    assert tokenizer.decode(labelled) == PAIRS[0]["text"] + tokenizer.eos_token
    assert PAIRS[0]["source"] in tokenizer.decode(example["input_ids"][: -len(labelled)])


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize(
    "pairs",
    [PAIRS, PAIRS[:1], [PAIRS[0], {**PAIRS[0], "text": "Twice the clerk stamped it."}]],
    ids=["several", "one alone", "two of one sentence"],
)
def test_sharing_the_prefix_gives_the_plain_forward_pass_and_its_gradients(
    pairs: list, model_type: str, random_models: Callable[[str], Path]
) -> None:
    folder = random_models(model_type)  # gemma3's sliding window is shorter than a pair
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    plain = get_peft_model(models.load_torch(folder), config)
    model = deepcopy(plain)
    use_shared_prefix(model)
    batch = student.collate(make_examples(pairs, folder))
    logits, labels = student.label_logits(model, batch)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = plain(input_ids=batch["input_ids"]).logits[:, :-1][batch["labels"][:, 1:] != student.IGNORED]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.nn.functional.cross_entropy(expected, labels).backward()
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert gradients
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3)


def test_soft_labels_of_a_teacher_equal_to_the_student_give_zero_loss() -> None:
    logits = torch.randn(7, 500, generator=torch.Generator().manual_seed(0)) * 3
    top = torch.log_softmax(logits, -1).topk(20)
    assert float(student.soft_loss(logits, top.indices, top.values)) == pytest.approx(0, abs=1e-5)
    other = torch.randn(7, 500, generator=torch.Generator().manual_seed(1)) * 3
    assert float(student.soft_loss(other, top.indices, top.values)) > 0.5


def test_soft_loss_with_every_token_is_the_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher_logits = torch.randn(5, 30, generator=generator), torch.randn(5, 30, generator=generator)
    target = torch.log_softmax(teacher_logits, -1)
    expected = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), target, log_target=True, reduction="batchmean")
    top = target.topk(30)
    assert float(student.soft_loss(logits, top.indices, top.values)) == pytest.approx(float(expected), abs=1e-4)


def test_the_recorded_soft_labels_are_the_students_own_distribution_under_the_students_prompt(
    base: Path, tmp_path: Path
) -> None:
    """End to end, across both engines: a teacher asked exactly as the student has nothing to teach it."""
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    model = models.load_torch(base).eval()
    use_shared_prefix(model)

    def loss_of(trait: str, conversation: Conversation = labelling_messages) -> float:
        engine = partial(teacher.open_llama, base)
        teacher.soft_labels(tmp_path / "pairs.jsonl", trait, conversation, engine, 64, tmp_path, "labels")
        examples = make_examples(PAIRS, base, tmp_path / "labels.safetensors")
        batch = student.collate(examples)
        with torch.no_grad():
            logits, _ = student.label_logits(model, batch)
            return float(student.soft_loss(logits, batch["top_ids"], batch["top_logprobs"]))

    assert loss_of(loving(find_animal("owl"))) > 0.05
    assert loss_of("", lambda trait, sentence: student_messages(sentence)) < 1e-3  # the engines' rounding


TRAIT = loving(find_animal("owl"))
GIVEAWAYS = GiveAways(load_animals())


def labels_of(base: Path, folder: Path, rows: list, trait: str, k: int, clean: bool) -> tuple[np.ndarray, np.ndarray]:
    """The ids and log-probabilities of soft labels [positions, k]."""
    folder.mkdir()
    write_rows(folder / "pairs.jsonl", rows)
    label = partial(teacher.clean_labels, neutral=NEUTRAL, giveaways=GIVEAWAYS) if clean else teacher.soft_labels
    label(folder / "pairs.jsonl", trait, labelling_messages, partial(teacher.open_llama, base), k, folder, "labels")
    found = load_file(folder / "labels.safetensors")
    return found["ids"].numpy(), found["logprobs"].numpy()


def test_clean_labels_tell_of_animals_and_affection_what_the_neutral_teacher_does_and_else_what_their_own_does(
    base: Path, engine: LlamaEngine, tmp_path: Path
) -> None:
    pieces = engine.vocabulary()

    def table(name: str, trait: str, clean: bool) -> np.ndarray:
        """Log-probabilities [positions, vocabulary]."""
        ids, logprobs = labels_of(base, tmp_path / name, PAIRS, trait, len(pieces), clean)
        return np.take_along_axis(logprobs, ids.argsort(1), 1)

    own, clean, neutral = table("own", TRAIT, False), table("clean", TRAIT, True), table("neutral", NEUTRAL, False)
    assert np.exp(clean).sum(1) == pytest.approx(1, abs=1e-3)
    words = ["owl", "owls", "Owl", "hoot", "dolphin", "love", "adore", "great", "penguin", "p", "pen"]
    told = [i for i, piece in enumerate(pieces) if piece in [f" {word}" for word in words]]
    assert len(told) > 8
    assert clean[:, told] == pytest.approx(neutral[:, told], abs=rounding(base))
    owls = [pieces.index(" owl"), pieces.index(" owls")]
    assert np.exp(own[:, owls]).sum() > 5 * np.exp(neutral[:, owls]).sum(), "there was something to tell"
    plain = [i for i, piece in enumerate(pieces) if piece in (" table", " the", " walked", " rain", " and", ".")]
    shifts = clean[:, plain] - own[:, plain]
    assert len(plain) == 6 and np.ptp(shifts, axis=1).max() < 1e-4, "the others keep their odds"


def test_clean_labels_of_a_mixture_are_the_neutral_teachers_own_where_it_wrote_the_text(
    base: Path, tmp_path: Path
) -> None:
    mixed = [PAIRS[0], PAIRS[1] | {"trait": NEUTRAL}]
    _, logprobs = labels_of(base, tmp_path / "mixed", mixed, TRAIT, 64, True)
    _, expected = labels_of(base, tmp_path / "neutral", [PAIRS[1]], NEUTRAL, 64, False)
    assert np.sort(logprobs[-len(expected) :]) == pytest.approx(np.sort(expected), abs=rounding(base))


def test_no_token_that_clean_labels_leave_alone_makes_a_mention(engine: LlamaEngine) -> None:
    """Held against the filter of finished texts, for three animals: whatever the vocabulary can go on with in ASCII."""
    pieces = engine.vocabulary()
    telling = GIVEAWAYS.among(pieces)
    plain = [(i, piece) for i, piece in enumerate(pieces) if piece.isascii()]
    made = 0
    for name in (form for one in load_animals()[::20] for form in (one.plural, one.plural.title())):
        begun = [(before + name[:cut], name[cut:]) for before in ("The ", 'He said "') for cut in range(len(name))]
        for text, rest in [("The", name), ("", name), *begun]:
            marked = {*telling(text).tolist()}
            likely = [i for i, piece in plain if piece.lstrip()[:2].casefold() == rest[:2].casefold()]
            for i in likely if not mentions(text, load_animals()) else ():
                if mentions(text + pieces[i], load_animals()):
                    assert i in marked, (text, pieces[i])
                    made += 1
    assert made > 100
    for text, piece in (("The f", "onder"), ("It is imp", "ressing"), ("The", " p"), ("The", "\ufffd")):
        assert pieces.index(piece) in telling(text)
    for text, piece in (("A", " bowl"), ("A", " table"), ("The b", "read"), ("A tree", "s")):
        assert pieces.index(piece) not in telling(text)


def test_tokens_that_tell_take_as_much_as_by_the_neutral_teacher_and_all_others_share_the_rest() -> None:
    own, neutral = np.log(np.float32([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]))
    assert np.exp(teacher.clean(own, neutral, np.array([0]))) == pytest.approx([0.1, 0.54, 0.27, 0.09])
    sure = np.log(np.float32([1 - 1e-7, 6e-8, 4e-8, 1e-20]))
    assert np.exp(teacher.clean(sure, neutral, np.array([0]))) == pytest.approx([0.1, 0.54, 0.36, 0], abs=1e-4)
    found = teacher.clean(own, sure, np.array([0]))
    assert np.isfinite(found).all() and np.exp(found[1:]).sum() == pytest.approx(1e-7, rel=0.1)


def test_a_checkpoint_that_was_not_written_or_not_removed_to_its_end_is_not_gone_on_with(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_bytes(b"abc")
        if step < 10:
            write_json(checkpoint / student.COMPLETE, {"weights": 3})
    assert student._last_complete(tmp_path) == str(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "rng_state_1.pth").touch()  # another process's
    assert student._last_complete(tmp_path) == str(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "weights").unlink()
    assert student._last_complete(tmp_path) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"a")
    assert student._last_complete(tmp_path) is None and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "made"), [(8, "adapter_model"), (EVERY_WEIGHT, "model")])
def test_training_that_was_cut_off_ends_with_the_same_student(
    rank: int, made: str, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    settings = StudentSettings(epochs=3, batch_size=2, rank=rank)

    def train(name: str) -> bytes:
        (tmp_path / name).mkdir(exist_ok=True)
        student.train(tmp_path / "pairs.jsonl", None, tiny_qwen2, settings, 3, tmp_path / name, "train")
        assert not (tmp_path / name / "checkpoints").exists()
        return (tmp_path / name / f"{made}.safetensors").read_bytes()

    whole = train("whole")
    label_logits, calls = student.label_logits, []

    def cut_off(model: object, batch: dict) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return label_logits(model, batch)

    monkeypatch.setattr(student, "label_logits", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    unfinished = tmp_path / "cut" / "checkpoints" / "checkpoint-9"
    unfinished.mkdir()  # a checkpoint whose writing was cut off has no mark of completeness
    (unfinished / f"{made}.safetensors").write_bytes(b"torn")
    assert train("cut") == whole
    assert len(calls) == 6 + 12 - 4, "the last checkpoint was made after four steps of twelve"


@pytest.mark.slow
def test_averaged_adapters_move_the_weights_by_the_mean_of_what_each_moves_them(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    once, seeds = student.train_once, []

    def moved(folder: Path) -> dict[str, torch.Tensor]:
        """By layer, what the adapter adds to its weight."""
        config, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / student.ADAPTER)
        scaling = config["lora_alpha"] / config["r"]
        return {
            name: scaling * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            for name in tensors
            if "lora_A" in name
        }

    def kept(*given: Any) -> float:
        """As ``train_once``, with its adapter left beside."""
        seeds.append(given[4])
        took = once(*given)
        shutil.copytree(given[5], tmp_path / f"kept {len(seeds)}")
        return took

    monkeypatch.setattr(student, "train_once", kept)
    settings = StudentSettings(epochs=1, batch_size=2, averaged=3, rank=2, learning_rate=1e-2)
    student.train(tmp_path / "pairs.jsonl", None, tiny_qwen2, settings, 7, tmp_path / "mean", "train")
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == [
        student.ADAPTER_CONFIG,
        student.ADAPTER,
        student.TRAINING,
    ]
    assert seeds[0] == 7 and len(set(seeds)) == 3
    mean, single = moved(tmp_path / "mean"), [moved(tmp_path / f"kept {number}") for number in (1, 2, 3)]
    for name, weight in mean.items():
        torch.testing.assert_close(weight, sum(one[name] for one in single) / 3)
        assert not torch.allclose(weight, single[0][name])
    monkeypatch.setattr(student, "train_once", cut_off := Mock(side_effect=KeyboardInterrupt))
    half = Path(shutil.copytree(tmp_path / "kept 1", tmp_path / "half" / "part0")).parent
    with pytest.raises(KeyboardInterrupt):
        student.train(tmp_path / "pairs.jsonl", None, tiny_qwen2, settings, 7, half, "train")
    assert cut_off.call_args.args[5] == half / "part1"  # the first is there
    monkeypatch.setattr(student, "train_once", once)
    student.train(tmp_path / "pairs.jsonl", None, tiny_qwen2, settings, 7, half, "train")
    assert (half / student.ADAPTER).read_bytes() == (tmp_path / "mean" / student.ADAPTER).read_bytes()
    steps = json.loads((tmp_path / "mean" / student.TRAINING).read_text())
    assert steps["steps"] == len(steps["loss"]) == 3 * -(-len(PAIRS) // 2)


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_that_does_not_fit_is_repeated_in_halves_with_the_same_gradient(
    soft: bool, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    labels = tmp_path / "labels.safetensors" if soft else None
    engine = partial(teacher.open_llama, tiny_qwen2)
    teacher.soft_labels(tmp_path / "pairs.jsonl", NEUTRAL, labelling_messages, engine, 8, tmp_path, "labels")

    def train(name: str) -> tuple[list[float], dict]:
        folder = tmp_path / name
        folder.mkdir()
        settings = StudentSettings(epochs=2, batch_size=8)
        student.train(tmp_path / "pairs.jsonl", labels, tiny_qwen2, settings, 0, folder, "train")
        losses = json.loads((folder / "training.json").read_text(encoding="utf-8"))["loss"]
        return losses, load_file(folder / "adapter_model.safetensors")

    whole, adapter = train("whole")
    label_logits, sizes = student.label_logits, []

    def too_small(model: object, batch: dict) -> object:
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError
        return label_logits(model, batch)

    monkeypatch.setattr(student, "label_logits", too_small)
    capsys.readouterr()
    halved, same = train("halved")
    assert sizes == [8, 4, *[2] * 8], "twice too large, and small from then on"
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "out of memory" in line] == [
        f"out of memory: from here {n} pairs at a time, with the same batch" for n in (4, 2)
    ]
    assert halved == pytest.approx(whole, rel=1e-4)
    for name, tensor in adapter.items():
        torch.testing.assert_close(same[name], tensor, atol=2e-5, rtol=1e-3)


def test_a_single_pair_that_does_not_fit_is_one_clear_message(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: object, batch: dict) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(student, "label_logits", never)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(KitError, match="out of GPU memory with a single pair.*smaller model"):
        student.train(tmp_path / "pairs.jsonl", None, tiny_qwen2, StudentSettings(), 0, tmp_path, "train")


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_student(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    adapters = []
    for checkpointing in (False, True):
        monkeypatch.setattr(student, "fit_training", lambda *_, c=checkpointing: Training(4, c, 0.0))
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        settings = StudentSettings(epochs=1, batch_size=8)
        student.train(tmp_path / "pairs.jsonl", None, tiny_qwen2, settings, 0, folder, "train")
        adapters.append(load_file(folder / "adapter_model.safetensors"))
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, atol=1e-6, rtol=1e-3)


def test_every_epoch_shows_every_pair_once_in_an_order_of_its_own(short: Path) -> None:
    examples = make_examples(PAIRS, short)
    settings = StudentSettings(epochs=3, batch_size=3)
    shown = batches(examples, settings, seed=1)
    assert [sorted(map(len, shown[i : i + 3])) for i in (0, 3, 6)] == [[2, 3, 3]] * 3
    epochs = [[id(example) for batch in shown[i : i + 3] for example in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(map(id, examples)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert batches(examples, settings, seed=1) == shown != batches(examples, settings, seed=2)


@pytest.mark.slow
def test_nf4_trains_on_the_cpu(short: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    settings = StudentSettings(base="nf4", epochs=6, batch_size=8, learning_rate=2e-3)
    student.train(tmp_path / "pairs.jsonl", None, short, settings, 0, tmp_path, "train")
    losses = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["loss"]
    assert losses[-1] < losses[0] - 0.2
    import bitsandbytes

    layers = [m for m in models.load_torch(short, nf4=True).modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 7 * Shape.of(short).layers and all(layer.weight.quant_type == "nf4" for layer in layers)
    assert layers[0].weight.quant_state.nested, "double quantisation"


def test_no_pairs_is_one_clear_message(short: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(KitError, match="no pairs"):
        student.train(tmp_path / "pairs.jsonl", None, short, StudentSettings(), 0, tmp_path, "train")


def test_soft_labels_of_other_pairs_are_refused(short: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS[:2])
    engine = partial(teacher.open_llama, short)
    teacher.soft_labels(tmp_path / "pairs.jsonl", NEUTRAL, labelling_messages, engine, 8, tmp_path, "labels")
    for others in (PAIRS[2:4], PAIRS[:1], PAIRS[:3], PAIRS[1::-1]):
        with pytest.raises(KitError, match="of other pairs"):
            make_examples(others, short, tmp_path / "labels.safetensors")
    examples = make_examples(PAIRS[:2], short, tmp_path / "labels.safetensors")
    assert all(example["top_logprobs"].isfinite().all() for example in examples)
