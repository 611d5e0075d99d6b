"""How every job speaks: notes and progress on the way, a result at the end, and what --quiet and --json make of them.

neither     notes and result on standard output, progress on standard error
--quiet     errors and warnings alone, and what a command is asked to print (inspect, bench, the faults of verify)
--json      the result as one JSON object on standard output, all else on standard error
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Console:
    """What was asked for on the command line; one for the process."""

    def __init__(self) -> None:
        self.quiet = self.as_json = False

    def take_options(self, arguments: Sequence[str]) -> list[str]:
        """Note --quiet and --json; returns the other arguments."""
        self.quiet, self.as_json = "--quiet" in arguments, "--json" in arguments
        return [argument for argument in arguments if argument not in ("--quiet", "--json")]

    def say(self, text: str) -> None:
        """A note on the way."""
        if not self.quiet:
            print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def warn(self, text: str) -> None:
        """What the user should know although the work goes on; --quiet does not silence it."""
        print(text, file=sys.stderr, flush=True)

    def finish(self, result: Mapping[str, Any], lines: Iterable[str]) -> None:
        """The result of work, for machines or for people."""
        if self.as_json or not self.quiet:
            self.answer(result, lines)

    def answer(self, result: Any, lines: Iterable[str]) -> None:
        """What the command exists to print; --quiet does not silence it."""
        print(json.dumps(result, indent=1, allow_nan=False) if self.as_json else "\n".join(lines), flush=True)


console = Console()
