"""Subliminal learning from faithful paraphrases (arXiv 2603.09517), small enough for a laptop."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository


class KitError(Exception):
    """Something the user can fix: the message says what was given, why it cannot be used, and what to do instead.
    ``run.py`` prints it without a traceback and exits with code 2."""
