"""The one exception that means "the caller asked for something that cannot be done"."""

import re


class UsageError(ValueError):
    """Bad input from the user: one line that names the value and the remedy.

    Scripts print it and exit with code 2; anything else is a bug and keeps its traceback.
    """


def usage_error_within(error: BaseException) -> UsageError | None:
    """Returns the UsageError raised within an input pipeline, of which TensorFlow keeps but the text."""
    found = re.search(r"^\S*UsageError: (.+)$", str(error), re.MULTILINE)
    return UsageError(found[1]) if found else None
