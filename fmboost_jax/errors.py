"""How commands end: exit codes, and how they speak of input that they cannot use.

0: done. 2: input that a person must mend, one clear line, no traceback. 143 (128 + SIGTERM): stopped by SIGTERM, all is
saved, the same command goes on. Anything else: it broke, the same command goes on from what was saved last.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

BAD_INPUT = 2
PREEMPTED = 143
NAMED_AT_MOST = 5


class InputError(ValueError):
    """Input that a person can mend. The message names the thing, what was expected, what was found, what to do."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's message in one line of at most `limit` characters, or its type's name without one."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def some(names: Sequence[str], limit: int = NAMED_AT_MOST) -> str:
    """Join the first names of a list for a message, with the number of those left out."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def printable(name: str) -> str:
    """Return a file's name with bytes that are not UTF-8, and control characters, spelled out."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def report(error: BaseException) -> int:
    """Print to stderr what ended a command; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    traceback.print_exception(error)
    return 1


def run(main: Callable[[], None]) -> None:
    """Run a command's main function; an `InputError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except (InputError, KeyboardInterrupt) as error:
        sys.exit(report(error))
