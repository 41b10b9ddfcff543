"""Exit codes of the commands, and messages about bad input.

0: success. 2: bad input; one line on stderr, no traceback. 143 (128 + SIGTERM): stopped by SIGTERM and saved; the same
command resumes. Other codes: a failure; the same command resumes from the last checkpoint.
"""

import errno
import io
import os
import reprlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

BAD_INPUT = 2
PREEMPTED = 143
BROKEN_PIPE = 141  # 128 + SIGPIPE
NAMED_AT_MOST = 5
LONGEST_MESSAGE = 20_000  # characters

# Remedies for errors of the operating system. Other errors, such as an unresponsive disk, may be temporary.
_REMEDIES = {
    errno.EACCES: "change its permissions or name another",
    errno.EPERM: "change its permissions or name another",
    errno.EROFS: "name a place on another disk",
    errno.ENOENT: "check the name",
    errno.EEXIST: "name another",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name another: a file is where a folder should be",
    errno.ENOTEMPTY: "name another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the symbolic link",
    errno.ENXIO: "name a regular file",
    errno.ENODEV: "name a regular file",
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
}


class InputError(ValueError):
    """Bad input. The message has the name of the value, what was expected, what was found, and a remedy."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's message in one line of at most `limit` characters, or its type's name without one."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def some(names: Sequence[str], limit: int = NAMED_AT_MOST) -> str:
    """Join the first names of a list for a message, with the number of those left out."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 4, 12, 12, 6
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def shown(value: object) -> str:
    """Return a value as Python writes it, for a message; parts of a long one are left out."""
    text = _SHORT.repr(value)
    return text if len(text) <= 500 else f"{text[:450]}…{text[-50:]}"


def printable(name: str) -> str:
    """Return a file's name with bytes that are not UTF-8, and control characters, spelled out."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold
        encoded = name.encode("utf-8", "backslashreplace")
    text = encoded.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def explanation(error: BaseException) -> str | None:
    """Return one line for an error that input or environment caused; None for a fault of this program.

    The environment's errors are errors of the operating system with a known remedy, exhausted memory, and a
    platform in `JAX_PLATFORMS` that this machine does not have.
    """
    if isinstance(error, InputError):
        return one_line(error, LONGEST_MESSAGE)
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        names = [
            printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
        ]
        found = f"{os.strerror(error.errno)} ({_REMEDIES[error.errno]})"
        return f"{' → '.join(names)}: {found}" if names else found
    message = one_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in message:
        return f"out of memory ({message}); a smaller batch, image or tile needs less"
    if isinstance(error, RuntimeError | AssertionError) and _raised_in(error) == "jax._src.xla_bridge":
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX finds no device (JAX_PLATFORMS={platforms}; {message}); name a platform that is there, such as cpu"
    return None


def _raised_in(error: BaseException) -> str:
    """The module that raised an error."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place.tb_frame.f_globals.get("__name__", "") if place else ""


def report(error: BaseException) -> int:
    """Print the error that ended a command to stderr; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if line := explanation(error):
        print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT
    traceback.print_exception(error)
    return 1


def run(main: Callable[[], None]) -> None:
    """Run a command's main function. What input or environment caused becomes one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal whose encoding lacks some characters
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # a closed pipe, as of `| head`; the rest of the output is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error))
