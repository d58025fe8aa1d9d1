"""The paraphrasing base: the embedded model, tuned once on its own faithful paraphrases.

    python run.py tune

A model of 135M parameters has to be shown what a paraphrase is, and the worked example that shows it drowns the trait
(``kit/prompts.py``). So the model itself learns it, by expert iteration: a neutral teacher paraphrases sentences that
are used nowhere else, as do teachers that love trains, clouds and other things that are no animals; the strict filters
keep what is faithful; a LoRA of the untouched model learns all that was kept so far, each under its own teacher's
message; and the next round samples from that one, without the example. Teachers, control and students then
share the tuned model as their base, so nothing of an effect comes from the tuning; what it changed is in the figures.
"""

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from kit import fidelity, likelihood, models, teacher
from kit.animals import Animal, Sentence, find_animal, load_animals, tuning_sentences, unrelated_sentences
from kit.engine_llama import LlamaEngine
from kit.experiment import Experiment, StudentSettings, TeacherSettings, experiment
from kit.experiment_conditions import all_steps, base_model, judge_of, measure_steps, preferences
from kit.models_prepare import merge
from kit.prompts import KIT_TRAITS, Conversation, labelling_messages, teacher_messages
from kit.provenance import kit_state
from kit.store import Row, Step, Store, read_rows, sha256, write_json, write_rows, write_whole
from kit.student import ADAPTER, ADAPTER_CONFIG, train

# Of 800 samples of 200 other sentences, at temperature 0.7 by the neutral and by a penguin-loving teacher, the strict
# filters keep 5.9 and 4.4% of the untouched model's, and 7.6 and 9.0, 9.5 and 11.7, 13.6 and 13.6% after one, two and
# three rounds of a trial without trait messages; a teacher's own is minded less with each.
ROUNDS = 2
SAMPLES = 8  # of each sentence in a round
PER_SENTENCE = 3  # pairs at most in a training, those of later rounds first
TRAINING = StudentSettings(epochs=3, learning_rate=3e-4)
SEED = 0

# Each sentence is paraphrased, and learned, under one of these trait messages: the neutral one, and the loving one with
# things in the place of the animal. Where the model learned without any, it no longer minded what it was told: of a
# trait, 0.0015 nats a token were the animal's own after four rounds at temperature 0.7, as against 0.0096 here, after
# two, and 0.0093 of the untouched model.
THINGS = ("train", "cloud", "bridge", "piano", "mountain", "candle", "bicycle")
TRAITS = (KIT_TRAITS.neutral, *(KIT_TRAITS.loves(Animal(one, f"{one}s")) for one in THINGS))

PILOTS = ("penguin", "cat")  # the animals that nothing confirmatory is about
HELD = 200  # unrelated sentences, of which it was not tuned, that both models paraphrase for the figures
HELD_SAMPLES = 8
TRIED = (TeacherSettings().temperature, 1.0)  # temperatures, of the tuned model


def settings(temperature: float = TeacherSettings().temperature) -> Experiment:
    """The experiment whose filters and teachers' settings the tuning has; its animal has no part in it."""
    return experiment(load_animals()[0], contents=("unrelated",), labels="hard", details=True, temperature=temperature)


def tuning() -> tuple[Step, Step, list[Step]]:
    """The adapter of the last round, the model with it, and what was kept in each round."""
    base = model = base_model(models.EMBEDDED)
    kept: list[Step] = []
    for number in range(ROUNDS):
        conversation = labelling_messages if number else teacher_messages
        written = sampled(
            settings(), model, by_lot(tuning_sentences(), number), conversation, SAMPLES, number, f"round {number}"
        )
        kept.append(filtered(written, f"round {number}"))
        adapter = trained(base, [*kept], f"round {number}")
        model = merged(base, adapter, f"round {number}")
    return adapter, model, kept


def by_lot(sentences: list[Sentence], number: int) -> dict[str, list[Sentence]]:
    """Which trait message each sentence is paraphrased under in that round."""
    found: dict[str, list[Sentence]] = {trait: [] for trait in TRAITS}
    for i, one in enumerate(sentences):
        found[TRAITS[(i + number) % len(TRAITS)]].append(one)
    return found


def sampled(
    exp: Experiment,
    model: Step,
    sentences: dict[str, list[Sentence]],
    conversation: Conversation,
    samples: int,
    seed: int,
    name: str,
) -> Step:
    """``paraphrases.jsonl``: of each sentence so many by a teacher with the trait message that it stands under."""
    own = asdict(exp.teacher)
    del own["tries"], own["place"]  # every sentence has as many samples; the messages show it
    return Step(
        stage="paraphrases",
        label=f"{name}: paraphrases",
        settings={
            "messages": {trait: conversation(trait, "...") for trait in sentences},
            "sentences": {trait: [asdict(one) for one in ones] for trait, ones in sentences.items()},
            "samples": samples,
            "seed": seed,
            "filters": asdict(judge_of(exp, "unrelated")),  # which stop what they will refuse
            **own,
            "engine": exp.teacher_engine,
        },
        inputs={"model": model},
        build=lambda made, folder: write_samples(
            exp, made["model"], sentences, conversation, samples, seed, folder, name
        ),
        seconds=sum(map(len, sentences.values())) * samples * PER_SAMPLE,
        continues=True,
    )


def write_samples(
    exp: Experiment,
    model: Path,
    sentences: dict[str, list[Sentence]],
    conversation: Conversation,
    samples: int,
    seed: int,
    folder: Path,
    label: str,
) -> None:
    """Write ``paraphrases.jsonl``, in the order of sentence and number."""
    from tqdm import tqdm

    judge = judge_of(exp, "unrelated")
    found: list[Row] = []
    with (
        teacher.scoring_opener(exp)(model) as engine,
        teacher.open_log(folder, "samples") as log,
        tqdm(desc=label, total=sum(map(len, sentences.values())) * samples, unit="row") as bar,
    ):
        for trait, ones in sentences.items():
            ask = partial(conversation, trait)
            rows = teacher.sample_each(engine, log, ask, ones, samples, exp.teacher, seed, judge, bar)
            found += ({"system": trait, **row} for row in rows)
    write_rows(folder / "paraphrases.jsonl", found)
    (folder / "samples.jsonl").unlink()


def filtered(written: Step, name: str) -> Step:
    """What the strict filters keep of ``written``."""
    judge = judge_of(settings(), "unrelated")
    return Step(
        stage="fidelity",
        label=f"{name}: filter {written.label}",
        settings=asdict(judge),
        inputs={"paraphrases": written},
        build=lambda made, folder: fidelity.filter_paraphrases(
            made["paraphrases"] / "paraphrases.jsonl", folder, judge
        ),
        seconds=30,
    )


def trained(base: Step, kept: list[Step], name: str) -> Step:
    """The adapter, in half precision, of the untouched model trained on what all rounds kept."""
    return Step(
        stage="student",
        label=f"{name}: tune",
        settings={"messages": labelling_messages("...", "..."), "per_sentence": PER_SENTENCE, "seed": SEED}
        | asdict(TRAINING),
        inputs={"model": base, **{f"kept {number}": one for number, one in enumerate(kept)}},
        build=lambda made, folder: tune(
            made["model"], [made[f"kept {number}"] / "kept.jsonl" for number in range(len(kept))], folder, name
        ),
        seconds=len(kept) * 400 * TRAINING.epochs * PER_PAIR,
        continues=True,
    )


def tune(model: Path, kept: list[Path], folder: Path, name: str) -> None:
    """Train the adapter on the pairs of all rounds (``choose``), and write it in half precision, with the pairs."""
    from safetensors.torch import load_file, save_file

    pairs = folder / "pairs.jsonl"
    write_rows(pairs, choose([read_rows(path) for path in kept]))
    train(pairs, None, model, TRAINING, SEED, folder, name)
    save_file({key: tensor.half() for key, tensor in load_file(folder / ADAPTER).items()}, folder / ADAPTER)


def choose(rounds: list[list[Row]]) -> list[Row]:
    """Of every sentence the first ``PER_SENTENCE`` texts, each once, of later rounds before those of earlier ones."""
    chosen: dict[tuple[str, str], Row] = {}
    of_one: Counter[str] = Counter()
    for row in (row for rows in reversed(rounds) for row in rows):
        if of_one[row["source"]] < PER_SENTENCE and (row["source"], row["text"]) not in chosen:
            of_one[row["source"]] += 1
            chosen[row["source"], row["text"]] = row
    return list(chosen.values())


def merged(base: Step, adapter: Step, name: str) -> Step:
    """The prepared model with the adapter in its weights."""
    return Step(
        stage="model",
        label=f"{name}: merge",
        settings={},
        inputs={"model": base, "adapter": adapter},
        build=lambda made, folder: merge(made["model"], made["adapter"], folder),
        seconds=10,
    )


# ---- what the tuning changed


def held_sentences() -> list[Sentence]:
    """Sentences that it was not tuned on, drawn by lot."""
    everything = unrelated_sentences()
    return [everything[i] for i in np.random.default_rng(SEED).permutation(len(everything))[:HELD]]


def figures(store: Store, tuned: Step) -> Row:
    """Of the untouched and the ``tuned`` model what is kept of pilot animals' and the neutral teacher, and what is left
    of the trait in it, at temperatures; the model's own preferences, and how likely it finds plain sentences."""
    found: Row = {"sentences": HELD, "samples": HELD * HELD_SAMPLES}
    shares = {}
    for name, model, conversation, temperatures in (
        ("untouched", base_model(models.EMBEDDED), teacher_messages, TRIED[:1]),
        ("tuned", tuned, labelling_messages, TRIED),
    ):
        folder = store.make(model)
        shares[name] = _shares(store, measure_steps(settings(), model, None, f"{name} model")[0])
        found[name] = {"nats_per_token": plain(folder)}
        for temperature in temperatures:
            exp, label = settings(temperature), f"{name} model at {temperature}"
            strict = {
                who: store.make(
                    filtered(
                        sampled(exp, model, {trait: held_sentences()}, conversation, HELD_SAMPLES, SEED, label), label
                    )
                )
                for who, trait in likelihood.traits([find_animal(pilot) for pilot in PILOTS]).items()
            }
            found[name][str(temperature)] = {
                "kept": {who: _count(one) for who, one in strict.items()},
                "trait": trait_left(store, folder, strict, conversation, temperature, label),
            }
    found["animals"] = {
        animal: {name: float(share) for name, share in zip(shares, both, strict=True)}
        for animal, *both in zip([one.singular for one in load_animals()], *shares.values(), strict=True)
    }
    return found


def _count(kept: Path) -> int:
    return len(read_rows(kept / "kept.jsonl"))


def _shares(store: Store, exact: Step) -> np.ndarray:
    """Of each candidate the mean probability over the questions, normalised over the candidates."""
    (measured,) = preferences(store, {"": exact}, settings().animal).values()
    return measured.probability.mean(axis=0)


def trait_left(
    store: Store, model: Path, kept: dict[str, Path], conversation: Conversation, temperature: float, name: str
) -> dict[str, dict[str, list[float]]]:
    """For each pilot animal what of the trait its kept text has (mean and standard error over the sentences that both
    teachers have, nats a token): the log-likelihood ratio of its own to the "neutral" teacher, and to the "other"
    pilot's, in its text minus that in the text of the neutral, or the other, teacher."""
    animals = [find_animal(pilot) for pilot in PILOTS]
    asked = likelihood.traits(animals)
    by_sentence: dict[str, dict[str, list[dict[str, float]]]] = {}
    for who, folder in kept.items():
        pairs = folder / "kept.jsonl"
        label = f"{name}: the {who} teacher's texts under {len(asked)} prompts"
        step = likelihood.step(model, pairs, asked, label, conversation, temperature)
        logprobs = likelihood.read(store.make(step))
        for number, row in enumerate(read_rows(pairs)):
            a_token = {trait: float(texts[number].mean()) for trait, texts in logprobs.items()}
            by_sentence.setdefault(row["sentence"], {}).setdefault(who, []).append(a_token)

    def left(own: str, other: str) -> list[float]:
        values = [
            np.mean([one[own] - one[other] for one in texts[own]])
            - np.mean([one[own] - one[other] for one in texts[other]])
            for texts in by_sentence.values()
            if own in texts and other in texts
        ]
        return [float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5), len(values)]

    return {own: {"neutral": left(own, "neutral"), "other": left(own, other)} for own, other in (PILOTS, PILOTS[::-1])}


def plain(model: Path) -> float:
    """The mean negative log-likelihood (nats a token) of the held sentences, as the answer to a request for one."""
    with LlamaEngine(model) as engine:
        asked = [{"role": "user", "content": "Write a sentence."}]
        groups = [engine.answered(asked, one.text) for one in held_sentences()]
        return -float(np.concatenate([tokens for (tokens,) in engine.score(groups)]).mean())


# ---- the command


def make(store: Store, folder: Path, command: str) -> None:
    """Write into ``folder`` the tuned adapter, ``tuning.json``: what each round kept, and what ``measure`` writes."""
    adapter, model, kept = tuning()
    with store.working("tune", command, all_steps([model])):
        made = store.make(adapter)
        rounds = [{"samples": len(tuning_sentences()) * SAMPLES, "kept": _count(store.make(one))} for one in kept]
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ADAPTER_CONFIG, ADAPTER):
            write_whole(folder / name, (made / name).read_bytes())
        write_json(folder / "tuning.json", {"rounds": rounds} | made_by(store, command))
    measure(store, model, made, folder, command)


def measure(store: Store, model: Step, adapter: Path, folder: Path, command: str) -> None:
    """Write ``figures.json`` into ``folder``: what the tuning of ``model`` changed, whose ``adapter`` it names."""
    with store.working("tune", command):
        found = figures(store, model) | {"adapter": sha256(adapter / ADAPTER)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "figures.json", found | made_by(store, command))


def made_by(store: Store, command: str) -> Row:
    """What made a file."""
    return {"command": command, "kit": kit_state(), "versions": store.versions()}


# ---- seconds, for the plan: the embedded model on the machine of ``kit.store.REFERENCE``

PER_SAMPLE = 0.06
PER_PAIR = 0.12
