"""The `mert` command: one module a job, errors in one line, exit codes 0 done, 1 failed, 2 bad usage."""

import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel

from mert_foundry.jobs.command.config import UsageError, describe_keys
from mert_foundry.jobs.command.console import console
from mert_foundry.pipeline.storage.folder_kinds import FolderError

JOBS = {
    "manifest": "scan a folder of audio into a manifest",
    "codec": "train a small RVQ-VAE codec, to be a teacher",
    "fit": "fit codebooks to features of a corpus, to be a teacher",
    "tokenizer": "train a tokenizer, on the text of a manifest or on text files",
    "tokenize": "text files to shards of text alone, with a tokenizer",
    "plan": "hours, bytes, memory and cost of labels and a run, before they are spent",
    "label": "manifest to labelled WebDataset shards, on Ray",
    "status": "how far a labelling job elsewhere is, from its folder",
    "verify": "check every shard against the index",
    "inspect": "look at a manifest, shards, runs, features or a probe; HTML report",
    "import": "weights of Hubert, MERT or fairseq to a folder that pretrain and export begin from",
    "pretrain": "train the encoder from shards, also under torchrun",
    "audit": "which examples and crops a step of a run drew",
    "export": "a checkpoint to a Hugging Face folder",
    "extract": "hidden states over audio, into a zarr store",
    "suite": "make the probing suite: labelled music, rendered from free packages",
    "probe": "what encoders know about music: heads on frozen features, against baselines",
    "bench": "speed, memory and exactness against the named peers",
}

# Names of before: whoever gives one is given that of now.
RENAMED = {"kmeans": "fit"}

# Which extra of pyproject.toml brings a package, where it is not `label`.
EXTRAS = {
    "mido": "suite",
    "pyloudnorm": "suite",
    "mir_eval": "probe",
    "scipy": "suite",
    "torchmetrics": "probe",
    "zarr": "features",
    "nnAudio": "bench",
    "datasets": "bench",
    "litdata": "bench",
    "transformers": "bench",
}

STDERR = 2  # the file itself: sys.stderr may be a test's
# What no user can cause: our own mistakes, which show where they are.
BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError, ZeroDivisionError)


def main() -> int:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *arguments = arguments
    if name in RENAMED:
        print(f"mert: {name} is now called {RENAMED[name]}; see mert {RENAMED[name]} --help", file=sys.stderr)
        return 2
    if name not in JOBS:
        print(f"mert: no command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"mert_foundry.jobs.{name}")
        if part := find_part(getattr(module, "PARTS", {}), arguments):
            module, arguments = importlib.import_module(part), arguments[1:]
    except ModuleNotFoundError as error:
        print(f"mert {name}: {missing_package(error)}", file=sys.stderr)
        return 1
    return run(module.main, arguments, module.__doc__ or "", getattr(module, "CONFIG", None))


def missing_package(error: ModuleNotFoundError) -> str:
    """What to say of a package that an extra of pyproject.toml brings; a module of our own that is missing is a bug."""
    package = (error.name or str(error)).partition(".")[0]
    if package == "mert_foundry":
        raise error
    return f"the package {package} is not installed; pip install '.[{EXTRAS.get(package, 'label')}]' adds it"


def find_part(parts: Mapping[str, str], arguments: Sequence[str]) -> str | None:
    """The module that does a part of a command: by its name, the first argument, or by the name and an option among the
    others.
    """
    found = [words for words in parts if words.split()[0] in arguments[:1] and set(words.split()) <= set(arguments)]
    return parts[max(found, key=len)] if found else None


def usage() -> str:
    """What `mert --help` prints."""
    longest = max(map(len, JOBS))
    lines = "\n".join(f"  mert {name:{longest}} {purpose}" for name, purpose in JOBS.items())
    return (
        f"usage: mert COMMAND ARGUMENTS [--quiet] [--json] [--debug]\n\n{lines}\n\nmert COMMAND --help shows an"
        " example and every setting."
    )


def run(
    job: Callable[[list[str]], int], arguments: list[str], documentation: str, config: type[BaseModel] | None = None
) -> int:
    """Run a job's main function on its arguments; turn errors into one line and an exit code.

    `--help` prints the documentation and every key of the job's config, if it has one.
    """
    _give_signals_a_stack()
    if "-h" in arguments or "--help" in arguments:
        print("\n\n".join([documentation.strip(), *([describe_keys(config)] if config else [])]))
        return 0
    debug = "--debug" in arguments
    try:
        return job(console.take_options([argument for argument in arguments if argument != "--debug"]))
    except (UsageError, FolderError) as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {missing_package(error)}", file=sys.stderr)
        if debug:
            traceback.print_exc()
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was published is whole; the same command goes on from here", file=sys.stderr)
        return 1
    except Exception as error:
        if debug or isinstance(error, BUGS):
            traceback.print_exc()
        else:
            lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
            print(f"error: {' '.join('; '.join(lines).split())}", file=sys.stderr)
        return 1


def _give_signals_a_stack() -> None:
    """Handle signals of the main thread on a stack of their own, which faulthandler brings; it also tells where a crash
    was.

    The oneDNN of torch 2.11 points the stack register into a buffer on the heap while it multiplies matrices. A signal
    that comes then, SIGTERM say, would be handled there, over other data: the process died of a corrupted heap instead
    of writing its checkpoint (https://github.com/uxlfoundation/oneDNN/issues/4845).
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=STDERR)
