"""The one exception that means "the caller asked for something that cannot be done"."""


class UsageError(ValueError):
    """Bad input from the user: one line that names the value and the remedy.

    Scripts print it and exit with code 2; anything else is a bug and keeps its traceback.
    """
