"""Subliminal learning from faithful paraphrases (arXiv 2603.09517), small enough for a laptop."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent  # of the repository
REFERENCE = ROOT / "results" / "reference"  # what is recorded


class KitError(Exception):
    """Something the user can fix: the message says what was given, why it cannot be used, and what to do instead.
    ``run.py`` prints it without a traceback and exits with code 2."""


# What steers a terminal, or turns round what it shows: all control characters but tab and line feed, the separators of
# lines and paragraphs, and what sets the direction of text; and halves of characters, as in a file's name that is no
# UTF-8, which cannot be written.
UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    r"""``text`` as a terminal may be shown it, whoever wrote it: ``UNSEEN`` characters by their numbers (\x1b)."""
    return UNSEEN.sub(lambda found: ascii(found.group())[1:-1], str(text))


def say(text: object = "", file: TextIO | None = None, flush: bool = False) -> None:
    """Print a ``printable`` text: whatever the kit prints line by line."""
    print(printable(text), file=file, flush=flush)


def wait_politely() -> None:
    """Have the threads of torch and llama.cpp, which wait for each other after every product, spin less while they do,
    unless the user has set how: beside other programs spinning takes the processor from the very thread that is waited
    for. To be called before a library is loaded.

    Tokens/s of llama.cpp on two cores, beside two busy processes and alone: 15, and 143 to 174, with OpenMP's own
    300,000 turns; 44, and 130 to 167, with 10,000; 40, and 113 to 118, with none.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


NETWORK = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def check_network(typed: str, connect: Callable[[], object]) -> None:
    """Have ``connect`` make an HTTP client, which what was ``typed`` needs. Raises KitError where it cannot, for the
    proxies or certificates that the environment names."""
    try:
        connect()
    except Exception as error:  # each library has its own
        found = [name for name in NETWORK if os.environ.get(name) or os.environ.get(name.lower())]
        if not found:
            raise
        # Some quote the value, and a proxy's may hold a password.
        reason = error if isinstance(error, ImportError) else getattr(error, "strerror", None) or "no such address"
        raise KitError(
            f"{typed}: no connection can be made with what the environment says in {', '.join(found)} ({reason}). "
            "Correct it, or unset it."
        ) from None
