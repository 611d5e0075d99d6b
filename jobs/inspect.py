"""Look at a manifest, a shard folder, runs, a feature store or a probe.

    mert inspect SHARD_FOLDER                          hours, targets, codebook use, lengths, what was dropped
    mert inspect SHARD_FOLDER --html report.html       the same with plots and examples to hear, one file, offline
    mert inspect SHARD_FOLDER --shard train-000000     the examples of one shard
    mert inspect SHARD_FOLDER --example KEY            members, shapes, ranges and first values of one
    mert inspect SHARD_FOLDER --export KEY FOLDER      its audio and targets as files
    mert inspect RUN_FOLDER [RUN_FOLDER ...] --html r.html    curves of several runs in the same plots
    mert inspect STORE.zarr --track KEY                nearest neighbours of a track
    mert inspect PROBE_FOLDER [--html FILE]            scores with intervals: tasks by models, then each task
    mert inspect LOCATION --diff OTHER                 what was added, removed, relabelled; which settings differ
    mert inspect shards|run|features|manifest|probe LOCATION ...    the kind by name; otherwise it is told by the files
    there

LOCATION is a folder or a URL (s3://, memory://); runs and probes are local. Of a shard folder only index and records
are read, and the bytes of the examples shown. --json prints the same for machines; the models ShardSummary,
ManifestSummary, RunSummary, FeatureSummary, ProbeReport, ExampleSummary, ShardRecord and Difference describe every key.
With --html: --examples N (default 6) drawn by --seed N, or --keys KEY,KEY; --codec WEIGHTS names the teacher's codec
where it has moved. --manifest FOLDER shows which files the manifest of a shard set rejected, and the tracks' paths; of
a feature store, the groups. --export overwrites nothing. Exit code 0, also when --diff finds differences.
"""

import argparse
import importlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mert_foundry.jobs.command.config import UsageError
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.jobs.inspection.as_text import as_text
from mert_foundry.jobs.inspection.options import (
    AnyOptions,
    FeatureOptions,
    ManifestOptions,
    ProbeOptions,
    RunOptions,
    ShardOptions,
)
from mert_foundry.jobs.inspection.view import View
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import FEATURES, MANIFEST, PROBE, RUN, SHARDS, FolderKind, find_kind


@dataclass(frozen=True)
class InspectedKind:
    """A kind of folder that can be inspected: its options, and the module whose `build_view` takes them."""

    folder: FolderKind
    options: type[AnyOptions]
    module: str


INSPECTED = {
    "shards": InspectedKind(SHARDS, ShardOptions, "mert_foundry.jobs.inspection.shards"),
    "manifest": InspectedKind(MANIFEST, ManifestOptions, "mert_foundry.jobs.inspection.manifest"),
    "run": InspectedKind(RUN, RunOptions, "mert_foundry.jobs.inspection.run"),
    "features": InspectedKind(FEATURES, FeatureOptions, "mert_foundry.jobs.inspection.features"),
    "probe": InspectedKind(PROBE, ProbeOptions, "mert_foundry.jobs.probing.view"),
}
FOLDERS_WITHIN = ("manifest", "shards", "run")  # of a folder that holds a whole job
PAGE_OPTIONS = {"examples", "keys", "seed", "codec"}
VIEWS = {"html", "diff", "export", "example", "track"}  # each shows something else
# Options that narrow a view, and the views that cannot be narrowed so.
NARROWS = {"shard": {"html", "diff"}, "manifest": {"diff", "example", "export", "shard"}}


def main(arguments: list[str]) -> int:
    name, locations, given = parse(arguments)
    kind = INSPECTED[name] if name else find_common_kind(locations)
    check_locations(kind, locations)
    check_options(kind, given)
    if "diff" in given:
        check_other(kind, locations, given["diff"])
    html = given.pop("html", None)
    if html:
        check_page(html)
    view: View = importlib.import_module(kind.module).build_view(kind.options(locations=tuple(locations), **given))
    if html:
        write_page(Path(html), view, shlex.join(["mert", "inspect", *arguments]))
    else:
        console.answer(view.data, as_text(view))
    return 0


def parse(arguments: list[str]) -> tuple[str | None, list[str], dict[str, Any]]:
    """The kind where it is named, the locations, and the options that were given. Raises UsageError."""
    parser = argparse.ArgumentParser(prog="mert inspect", add_help=False, argument_default=argparse.SUPPRESS)
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
    given = vars(parser.parse_args(arguments))
    for option, value in given.items():
        if value == "" or isinstance(value, list) and "" in value:
            raise UsageError(f"{'LOCATION' if option == 'locations' else f'--{option}'}: the value is empty")
    if given.get("examples", 0) < 0:
        raise UsageError(f"--examples {given['examples']}: a number of examples is needed, 0 or more")
    if "keys" in given:
        given["keys"] = tuple(given["keys"].split(","))
    if "export" in given:
        given["export"] = tuple(given["export"])
    locations = given.pop("locations")
    # A first word such as `run` names the kind when a location follows; alone it is the folder of that name.
    name = locations.pop(0) if len(locations) > 1 and locations[0] in INSPECTED else None
    if name and files.exists(name) and Path(name) not in map(Path, locations):
        console.warn(f"{name} is taken for the kind of folder; ./{name} is the folder of that name")
    return name, locations, given


def find_common_kind(locations: list[str]) -> InspectedKind:
    """What all locations are. Raises UsageError when they differ, or one is nothing that can be inspected."""
    kinds = {location: find_inspected_kind(location) for location in locations}
    if len({kind.folder.name for kind in kinds.values()}) > 1:
        listed = ", ".join(f"{location} is a {kind.folder.name}" for location, kind in kinds.items())
        raise UsageError(f"several locations must be of one kind: {listed}")
    return kinds[locations[0]]


def find_inspected_kind(location: str) -> InspectedKind:
    """What a location is. Raises UsageError when it is nothing that can be inspected."""
    for kind in INSPECTED.values():
        if is_of_kind(location, kind):
            return kind
    known = ", ".join(f"{kind.folder.name} ({kind.folder.marker})" for kind in INSPECTED.values())
    if not files.exists(location):
        raise UsageError(f"{location}: there is no such folder; mert inspect reads a {known}")
    found = find_kind(location)
    if found and found[0] not in [kind.folder for kind in INSPECTED.values()]:
        raise UsageError(f"{location} is a {found[0].name} (it has {found[1]}); mert inspect reads a {known}")
    below = [files.join(location, name) for name in FOLDERS_WITHIN if files.exists(files.join(location, name))]
    hint = f"; did you mean {' or '.join(below)}?" if below else ""
    if any(name.endswith(".tar") for name in files.list_names(location)):
        hint = "; it has tars but no index.json, which mert label writes when all shards are done"
    raise UsageError(f"{location}: none of {known}{hint}")


def is_of_kind(location: str, kind: InspectedKind) -> bool:
    """Whether there is what a reader of such a folder reads first."""
    return files.exists(files.join(location, kind.folder.marker))


def check_locations(kind: InspectedKind, locations: list[str]) -> None:
    """Raise UsageError when a location is not of the kind, or there are more than the kind can show together."""
    for location in locations:
        if not is_of_kind(location, kind):
            found = find_inspected_kind(location).folder
            raise UsageError(f"{location} is a {found.name} (it has {found.marker}), not a {kind.folder.name}")
    if len(locations) > 1 and kind.folder is not RUN:
        hint = ", --diff compares two" if "diff" in option_names(kind) else ""
        raise UsageError(f"only runs are shown together; {locations[0]} is a {kind.folder.name}{hint}")


def check_other(kind: InspectedKind, locations: list[str], other: str) -> None:
    """Raise UsageError when --diff does not compare two of a kind."""
    if len(locations) > 1:
        raise UsageError("--diff compares one location with one other")
    if not is_of_kind(other, kind):
        found = find_inspected_kind(other).folder.name
        raise UsageError(f"--diff compares two of a kind: {locations[0]} is a {kind.folder.name}, {other} is a {found}")


def option_names(kind: InspectedKind) -> set[str]:
    """Names of the options that mean something on a kind."""
    return {field.name for field in fields(kind.options)} - {"locations"} | {"html"}


def check_options(kind: InspectedKind, given: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that means nothing on this kind of folder, or two that exclude each other."""
    foreign = sorted(set(given) - option_names(kind))
    if foreign:
        raise UsageError(f"--{foreign[0]} means nothing on a {kind.folder.name}")
    if {"keys", "examples"} <= set(given):
        raise UsageError("--keys names the examples, --examples draws them: give one of the two")
    views = sorted(VIEWS & set(given))
    if len(views) > 1:
        raise UsageError(f"--{views[0]} and --{views[1]}: give one of the two")
    of_page = sorted(PAGE_OPTIONS & set(given))
    if of_page and "html" not in given:
        raise UsageError(f"--{of_page[0]} belongs to --html")
    for narrow, others in NARROWS.items():
        if narrow in given and others & set(given):
            raise UsageError(f"--{narrow} and --{sorted(others & set(given))[0]}: give one of the two")
    if "html" in given and console.as_json:
        raise UsageError("--html and --json: give one of the two")


def check_page(path: str) -> None:
    """Raise UsageError, before the work, when the page could not be written there."""
    from mert_foundry.jobs.command.preflight import check_writable  # imports torch, which takes seconds

    if not path.endswith((".html", ".htm")):
        raise UsageError(f"--html {path}: a name that ends with .html is needed")
    if not files.is_local(path):
        raise UsageError(f"--html {path}: a local file is needed")
    if Path(path).is_dir():
        raise UsageError(f"--html {path}: a folder of that name is there")
    check_writable(Path(path))


def write_page(path: Path, view: View, command: str) -> None:
    """Publish the page whole, in place of an older one."""
    from mert_foundry.jobs.inspection.as_page import as_page  # text needs no jinja2

    page = as_page(view, command)
    files.publish_bytes(str(path.absolute()), page)
    console.say(f"report: {path}, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__))
