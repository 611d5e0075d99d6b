"""Measure speed, memory and exactness against the named peers, side by side in one run.

    mert bench label [--json] [--minutes 30] [--codec foundry-small] FILES_OR_FOLDERS...
    mert bench step  [--json] [--layout 95m]
    mert bench step  CONFIG --dry [--json] [--gpus 8]
    mert bench loader [--json] [--peers]
    mert bench gpu    [--json] OUT_FOLDER

`mert bench label --help` and so on tell what each measures and all its options.
Ratios within one run are what counts; a machine's times are its own.
"""

import importlib
import sys

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.line import find_part, run

PARTS = {
    "label": "mert_foundry.jobs.benchmarks.label_benchmark",
    "step --dry": "mert_foundry.jobs.planning.dry_step",
    "step": "mert_foundry.jobs.benchmarks.step_benchmark",
    "loader": "mert_foundry.jobs.benchmarks.loader_benchmark",
    "gpu": "mert_foundry.jobs.benchmarks.gpu_benchmark",
}


def main(arguments: list[str]) -> int:
    part = find_part(PARTS, arguments)
    if part is None:
        name = arguments[0] if arguments else None
        raise UsageError(f"mert bench: {name!r} is none of {', '.join(PARTS)}")
    return importlib.import_module(part).main(arguments[1:])


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))
