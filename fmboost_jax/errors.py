"""How commands speak of input that they cannot use: one clear line, exit code 2, no traceback."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Input that a person can mend. The message names the thing, what was expected, what was found, what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a command's main function; an `InputError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
