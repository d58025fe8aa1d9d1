"""Spot the owl: whose paraphrase is whose? A blind quiz for people, and the same quiz for a classifier."""

from dataclasses import dataclass

import numpy as np

from kit.stats import Interval
from kit.store import Row

ROUNDS = 10
FOLDS = 5  # of the classifier's cross-validation


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
    def told_apart(self) -> bool:
        """Whether the interval lies above chance, one half."""
        return self.ci95[0] > 0.5


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


def score(right: int, played: int) -> Score:
    """The score of ``right`` answers in ``played`` rounds, at least one."""
    from scipy.stats import binomtest

    low, high = binomtest(right, played).proportion_ci(method="wilson")
    return Score(right, played, (float(low), float(high)))


def classifier(played: list[Round]) -> Score:
    """The score of a classifier (words and word pairs weighed by TF-IDF, logistic regression) that is shown other
    rounds with their answers first; a sentence is never in both."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    right = 0
    fold = np.arange(len(played)) % FOLDS
    for held_out in range(FOLDS):
        shown = [one for one, part in zip(played, fold, strict=True) if part != held_out]
        asked = [one for one, part in zip(played, fold, strict=True) if part == held_out]
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
        model.fit([text for one in shown for text in one.texts], [i == one.loving for one in shown for i in (0, 1)])
        for one in asked:
            first, second = model.decision_function(list(one.texts))
            right += int(second > first) == one.loving
    return score(right, len(played))
