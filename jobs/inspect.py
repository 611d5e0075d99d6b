"""Look at a manifest, a shard folder, a run or a feature store.

    mert inspect SHARD_FOLDER                          hours, targets, codebook use, lengths, what was dropped
    mert inspect SHARD_FOLDER --html report.html       the same with plots and examples to hear, one file, offline
    mert inspect SHARD_FOLDER --shard train-000000     the examples of one shard
    mert inspect SHARD_FOLDER --example KEY            members, shapes, ranges and first values of one
    mert inspect SHARD_FOLDER --export KEY FOLDER      its audio and targets as files
    mert inspect RUN_FOLDER [RUN_FOLDER ...] --html r.html    curves of runs, one over the other
    mert inspect STORE.zarr --track KEY                nearest neighbours of a track
    mert inspect LOCATION --diff OTHER                 what was added, removed, relabelled; which settings differ

LOCATION is a folder or a URL (s3://, memory://); runs are local. Of a shard folder only index and records are read,
and the bytes of the examples shown. --json prints the same for machines; the models ShardSummary, ManifestSummary,
RunSummary, FeatureSummary, ExampleSummary, ShardRecord and Difference describe every key. With --html: --examples N
(default 6) drawn by --seed N, or --keys KEY,KEY; --codec WEIGHTS names the teacher's codec where it has moved.
--manifest FOLDER shows what the manifest of a shard set left out, and the tracks' paths; of a feature store, the groups. --export overwrites nothing.
Exit code 0, also when --diff finds differences.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.command.preflight import check_writable
from mert_foundry.jobs.command.text import printable
from mert_foundry.pipeline.storage import files as storage
from mert_foundry.pipeline.storage.folder_kinds import FEATURES, MANIFEST, RUN, SHARDS, FolderKind, find_kind

# Who looks at a folder: the module of its view (text, JSON) and of its report (the page) begin with this.
VIEWS = {SHARDS: "shard", MANIFEST: "manifest", RUN: "run", FEATURES: "feature"}
ROOM = "mert_foundry.jobs.inspection"
PLACES = ("manifest", "shards", "run")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    name, module = find_view(options.locations)
    refuse_options(options, name, module)
    if options.html:
        check_report(options.html)
    if options.diff:
        check_other(options.locations[0], options.diff)
    if options.html:
        # Only where a page is made: the report of shards needs a decoder of the teacher, which a training node does not have.
        pages = importlib.import_module(f"{module.__name__.removesuffix('_view')}_report")
        write_report(Path(options.html), pages.report(options))
        return 0
    answer, lines = module.inspect(options)
    console.answer(answer, map(printable, lines))  # nothing in a name or a file steers the terminal
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command line of `mert inspect`."""
    parser = argparse.ArgumentParser(prog="mert inspect", add_help=False)
    parser.add_argument("locations", nargs="+", metavar="LOCATION")
    parser.add_argument("--shard", metavar="NAME")
    parser.add_argument("--example", metavar="KEY")
    parser.add_argument("--export", nargs=2, metavar=("KEY", "FOLDER"))
    parser.add_argument("--diff", metavar="OTHER")
    parser.add_argument("--manifest", metavar="FOLDER")
    parser.add_argument("--track", metavar="KEY")
    parser.add_argument("--html", metavar="FILE")
    parser.add_argument("--examples", type=int, metavar="N")
    parser.add_argument("--keys", metavar="KEY,KEY")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--codec", metavar="WEIGHTS")
    options = parser.parse_args(arguments)
    for option, value in vars(options).items():
        if value == "" or isinstance(value, list) and "" in value:
            raise UsageError(f"{'LOCATION' if option == 'locations' else f'--{option}'}: the value is empty")
    if options.examples is not None and options.examples < 0:
        raise UsageError(f"--examples {options.examples}: a number of examples is needed, 0 or more")
    if options.html and not options.html.endswith((".html", ".htm")):
        raise UsageError(f"--html {options.html}: a name that ends with .html is needed")
    if options.keys and options.examples is not None:
        raise UsageError("--keys names the examples, --examples draws them: give one of the two")
    return options


def find_view(locations: list[str]) -> tuple[str, ModuleType]:
    """What the locations are, all of one kind, and the module that looks at them. Raises UsageError."""
    kinds = {location: _viewed_kind(location) for location in locations}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{location} is a {kind.name}" for location, kind in kinds.items())
        raise UsageError(f"several locations must be of one kind: {listed}")
    kind = kinds[locations[0]]
    module = importlib.import_module(f"{ROOM}.{VIEWS[kind]}_view")
    if len(locations) > 1 and kind is not RUN:
        hint = ", --diff compares two" if "diff" in module.OPTIONS else ""
        raise UsageError(f"only runs are shown together; {locations[0]} is a {kind.name}{hint}")
    return kind.name, module


def check_other(location: str, other: str) -> None:
    """Raise UsageError when the two of --diff are not of one kind."""
    kinds = [_viewed_kind(each).name for each in (location, other)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"--diff compares two of a kind: {location} is a {kinds[0]}, {other} is a {kinds[1]}")


def _viewed_kind(location: str) -> FolderKind:
    for kind in VIEWS:
        if storage.exists(storage.join(location, kind.marker)):
            return kind
    known = ", ".join(f"{kind.name} ({kind.marker})" for kind in VIEWS)
    if not storage.exists(location):
        raise UsageError(f"{location}: there is no such folder; what is looked at is a {known}")
    found = find_kind(location)
    if found and found[0] not in VIEWS:
        raise UsageError(f"{location} is a {found[0].name} (it has {found[1]}); what is looked at is a {known}")
    below = [storage.join(location, place) for place in PLACES if storage.exists(storage.join(location, place))]
    hint = f"; did you mean {' or '.join(below)}?" if below else ""
    if any(name.endswith(".tar") for name in storage.list_names(location)):
        hint = "; it has tars but no index.json, which mert label writes when all shards are done"
    raise UsageError(f"{location}: none of {known}{hint}")


def refuse_options(options: argparse.Namespace, name: str, module: ModuleType) -> None:
    """Raise UsageError for an option that means nothing on this kind of location, or two that exclude each other."""
    given = {option for option, value in vars(options).items() if value is not None and value is not False} - {
        "locations",
    }
    foreign = sorted(given - module.OPTIONS)
    if foreign:
        raise UsageError(f"--{foreign[0]} means nothing on a {name}")
    views = sorted(given & {"html", "diff", "export", "example", "track"})
    if len(views) > 1:
        raise UsageError(f"--{views[0]} and --{views[1]}: give one of the two")
    if options.html is None and given & {"examples", "keys", "seed", "codec"}:
        raise UsageError(f"--{sorted(given & {'examples', 'keys', 'seed', 'codec'})[0]} belongs to --html")
    for narrow, others in {"shard": {"html", "diff"}, "manifest": {"diff", "example", "export", "shard"}}.items():
        if narrow in given and given & others:
            raise UsageError(f"--{narrow} and --{sorted(given & others)[0]}: give one of the two")
    if options.html and console.as_json:
        raise UsageError("--html and --json: give one of the two")
    if options.diff and len(options.locations) > 1:
        raise UsageError("--diff compares one location with one other")


def check_report(place: str) -> None:
    """Raise UsageError, before the work, when the page could not be written there."""
    if not storage.is_local(place):
        raise UsageError(f"--html {place}: a local file is needed")
    if Path(place).is_dir():
        raise UsageError(f"--html {place}: a folder of that name is there")
    check_writable(Path(place))


def write_report(path: Path, page: bytes) -> None:
    """Publish the page whole, in place of an older report."""
    storage.publish_bytes(str(path.absolute()), page)
    console.say(f"report: {path}, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))
