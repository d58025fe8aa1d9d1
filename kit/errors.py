"""The one exception meant for the user's eyes: what was given, why it cannot be used, what to do instead."""


class KitError(Exception):
    """Something the user can fix. ``run.py`` prints the message without a traceback and exits with code 2."""
