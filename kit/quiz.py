"""Spot the owl: whose paraphrase is whose? A blind quiz for people, and for the inspectors of ``kit/inspectors.py``."""

from dataclasses import dataclass

import numpy as np

from kit.stats import Interval
from kit.store import Row

ROUNDS = 10


@dataclass(frozen=True)
class Round:
    """Two paraphrases of one sentence, and which of them (0 or 1) the loving teacher wrote."""

    source: str
    texts: tuple[str, str]
    loving: int


@dataclass(frozen=True)
class Score:
    """How many of how many were right, and the 95% interval (Wilson) of the share."""

    right: int
    rounds: int
    ci95: Interval

    @property
    def against_chance(self) -> str:
        """Whether the interval lies "above", "around" or "below" one half, what guessing gets."""
        low, high = self.ci95
        return "above" if low > 0.5 else "below" if high < 0.5 else "around"


@dataclass(frozen=True)
class Game:
    """Where a class stands: it began with the ``first``-th of all rounds and has ``played`` so many, of which so many
    were ``right``; ``choice`` (0 or 1): what it took the loving teacher's to be in the round that is shown with its
    solution, None before that."""

    first: int = 0
    played: int = 0
    right: int = 0
    choice: int | None = None

    def shown(self, played: list[Round]) -> Round:
        """The round that is on the screen."""
        return played[(self.first + self.played - (self.choice is not None)) % len(played)]

    def answer(self, choice: int, played: list[Round]) -> "Game":
        """The game after an answer; as it was where the round was answered already."""
        if self.choice is not None:
            return self
        right = self.right + (choice == self.shown(played).loving)
        return Game(self.first, self.played + 1, right, choice)

    def over(self, played: list[Round]) -> bool:
        """Whether all its rounds were played: ``ROUNDS``, or as many as there are."""
        return self.played == min(ROUNDS, len(played))

    def next(self, played: list[Round]) -> "Game":
        """The game with its next round; when it is over, another one, with other sentences; as it was before an
        answer."""
        if self.choice is None:
            return self
        if self.over(played):
            return Game((self.first + self.played) % len(played))
        return Game(self.first, self.played, self.right)


def rounds(treated: list[Row], control: list[Row], seed: int) -> list[Round]:
    """Every sentence of which the two students' pairs hold different paraphrases, once, in random order."""
    random = np.random.default_rng(seed)
    neutral = {row["sentence"]: row["text"] for row in reversed(control)}  # the first one of each sentence
    found = []
    for sentence, row in {row["sentence"]: row for row in reversed(treated)}.items():
        if sentence in neutral and neutral[sentence] != row["text"]:
            loving = int(random.integers(2))
            texts = (row["text"], neutral[sentence])
            found.append(Round(row["source"], texts if loving == 0 else texts[::-1], loving))
    return [found[i] for i in random.permutation(len(found))]


def score(right: int, played: int, spread: float = 1.0) -> Score:
    """The score of ``right`` answers in ``played`` rounds, at least one. ``spread``: how many times the variance of
    independent answers theirs is; the interval is that of so many times fewer."""
    from scipy.stats import binomtest

    counted = round(right / spread), round(played / spread)
    low, high = binomtest(*counted).proportion_ci(method="wilson")
    return Score(right, played, (float(low), float(high)))
