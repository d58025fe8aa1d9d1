"""One experiment before any defence, and what stands of a student under one (``kit/defences.py``)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kit import fidelity, graph, likelihood, matching, prompts
from kit.animals import candidates
from kit.engine import Engine, completion
from kit.errors import KitError
from kit.experiment import Experiment
from kit.store import Row, Step, Store, read_rows, write_json

UNSEEN = 100  # pairs on which students' losses are measured, at most: ten seconds a student
SUSPECTS = 12  # candidate animals that the blind defender looks at, the true one not among them: ten minutes


@dataclass(frozen=True)
class Defended:
    """A defence at work: the student's ``exact`` preference, and those of its control and its placebo, who were trained
    and asked alike; of its training data how many ``pairs`` come from the loving teacher, the share of tokens
    ``masked``, and the mean ``similarity`` (cosine) of paraphrase and source; its ``loss`` on a neutral teacher's
    paraphrases of the same sentences in other words (a step that writes ``loss.json``, in nats per byte)."""

    exact: Step
    control: Step
    placebo: Step
    pairs: int
    masked: float
    similarity: float
    loss: Step


class Case:
    """One experiment before any defence: its students, and their pairs, of the one content that it has."""

    def __init__(self, exp: Experiment, store: Store) -> None:
        """Makes the teachers' pairs; ``defences.check`` comes first."""
        self.exp, self.store = exp, store
        (self.content,) = exp.contents
        self.base = graph.base_model(exp.model, exp.gguf)
        model = store.make(self.base)
        arms = graph.arms(exp, graph.shortfalls(exp, store))
        self.treated, self.control, self.placebo = (
            self._arm(arms, role) for role in ("treated", "control", "placebo1")
        )
        self.trait = prompts.loving(exp.animal)
        self.own = read_rows(self.file(self.treated))
        self.other = matching.matched(self.own, read_rows(self.file(self.control)))
        learned_from = likelihood.learned_from(exp.labels, exp.teacher.temperature)
        self.texts = likelihood.Texts(store, model, self.file(self.treated), exp.animal, "treated", *learned_from)

    def _arm(self, arms: dict[str, graph.Arm], role: str) -> graph.StudentArm:
        arm = arms[f"{role}-{self.content}"]
        assert isinstance(arm, graph.StudentArm)
        return arm

    def file(self, arm: graph.StudentArm) -> Path:
        """A student's pairs."""
        return self.store.make(arm.pairs) / "pairs.jsonl"

    @cached_property
    def ratios(self) -> list[np.ndarray]:
        """The log-likelihood ratio (nats) of every token of the loving teacher's texts."""
        return self.texts.ratios()

    @cached_property
    def diverges(self) -> list[np.ndarray]:
        """Which tokens of every text are divergence tokens."""
        return [np.array(row["diverges"]) for row in self.texts.tokens()]

    @cached_property
    def unrest(self) -> list[np.ndarray]:
        """Of every token of every text the variance (square nats) of its ratio over ``SUSPECTS`` animals, chosen at
        random among the others: what somebody can know who knows how trait prompts are worded and not whose to
        suspect."""
        others = [one for one in candidates(self.exp.animal) if one.singular != self.exp.animal.singular]
        chosen = np.random.default_rng(self.exp.seed).permutation(len(others))[:SUSPECTS]
        animals = [others[i] for i in sorted(chosen)]
        found = self.texts.under(animals)
        of_animals = [likelihood.token_ratios(found, animal.singular) for animal in animals]
        return [np.var(texts, axis=0) for texts in zip(*of_animals, strict=True)]

    @cached_property
    def unseen(self) -> list[Row]:
        """Pairs of the placebo's whose text is in neither the loving nor the neutral teacher's, ``UNSEEN`` at most."""
        seen = {(row["source"], row["text"]) for row in [*self.own, *self.other]}
        rows = read_rows(self.file(self.placebo))
        found = [row for row in rows if (row["source"], row["text"]) not in seen]
        if not found:
            raise KitError("every paraphrase of the placebo's teacher is in some training data. Ask for more --pairs.")
        return found[:UNSEEN]

    def learned(self, name: str, rows: list[Row], trait: str, pairs: int) -> Defended:
        """The defence whose student trains on ``rows``, of which so many ``pairs`` come from the loving teacher; rows
        without a "trait" of their own are labelled by the teacher with the message ``trait``."""
        name = f"{name}-{self.content}"
        given = graph.given("pairs", rows, f"pairs of {name}")
        arm = graph.learned(self.exp, name, self.base, trait, given, len(rows))
        return self.defended(arm.exact, rows, pairs)

    def defended(
        self, exact: Step, rows: list[Row], pairs: int, control: Step | None = None, placebo: Step | None = None
    ) -> Defended:
        """What stands of a student that was trained on ``rows``, with the experiment's own control and placebo unless
        others are given."""
        masks = [row["masked"] for row in rows if "masked" in row]
        return Defended(
            exact,
            control or self.control.exact,
            placebo or self.placebo.exact,
            pairs,
            sum(len(one["places"]) for one in masks) / max(1, sum(one["of"] for one in masks)),
            float(np.mean(list(fidelity.similarities(rows)))),
            neutral_loss(exact.inputs, self.unseen, exact.label),
        )

    def again(self, name: str, exp: Experiment, base: Step) -> Defended:
        """Treated, control and placebo student trained once more on their own pairs, as ``exp`` says, from the model
        ``base``."""

        def measured(arm: graph.StudentArm, role: str, trait: str) -> Step:
            return graph.learned(exp, f"{role}-{self.content}, {name}", base, trait, arm.pairs, len(self.own)).exact

        exact = measured(self.treated, "treated", self.trait)
        control = measured(self.control, "control", prompts.NEUTRAL)
        placebo = measured(self.placebo, "placebo1", prompts.NEUTRAL)
        return self.defended(exact, self.own, len(self.own), control, placebo)


def neutral_loss(student: dict[str, Step], rows: list[Row], name: str) -> Step:
    """What a student ("model" and, where there is one, "adapter") loses on the neutral teacher's paraphrases ``rows``
    as a step: ``loss.json`` with ``nats_per_byte``."""

    def build(made: dict[str, Path], folder: Path) -> None:
        from kit.llama import LlamaEngine

        with LlamaEngine(made["model"]) as engine:
            engine.use_adapter(made["adapter"] / "adapter.gguf" if "adapter" in made else None)
            write_json(folder / "loss.json", {"nats_per_byte": loss(engine, rows)})

    return Step(
        stage="loss",
        label=f"loss on neutral paraphrases, {name}",
        settings={
            "messages": prompts.student_messages("..."),
            "rows": [[row["source"], row["text"]] for row in rows],
            "unit": "nats per byte",
        },
        inputs=student,
        build=build,
        seconds=10,
    )


def loss(engine: Engine, rows: list[Row]) -> float:
    """What a student loses on ``rows``' texts and their end tokens, in nats per byte of text: tokens are not the same
    in every model."""
    groups = [(engine.chat(prompts.student_messages(row["source"])), [completion(engine, row["text"])]) for row in rows]
    total = sum(float(logprobs.sum()) for (logprobs,) in engine.score(groups))
    return -total / sum(len(row["text"].encode("utf-8")) for row in rows)
