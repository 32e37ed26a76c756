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


def without_colours(text: str) -> str:
    """Returns the text without a terminal's codes for colours and weights."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def one_line(error: BaseException | str) -> str:
    """Returns all that `error` says, or its type if it says nothing, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Returns the first line of what an error says, without Keras's wrapping, or its type."""
    lines = (line.strip() for line in without_colours(str(error)).splitlines())
    told = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return told[0] if told else type(error).__name__
