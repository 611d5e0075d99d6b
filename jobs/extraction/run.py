"""One extraction from its settings to the finished store; how its parts are spread is the caller's.

`extract` does all of it on this machine, without Ray, for other jobs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial

import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.cluster.worker_processes import map_in_processes
from mert_foundry.jobs.command.preflight import check_cuda, check_precision, check_writable, locked, resolve_device
from mert_foundry.jobs.command.progress import Progress
from mert_foundry.jobs.extraction.models import open_model
from mert_foundry.jobs.extraction.part import PartExtractor, WorkOrder
from mert_foundry.jobs.extraction.plan import Plan, in_names_of, make_plan
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.extraction.source import Input, read_input
from mert_foundry.model.features.feature_model import FeatureModel
from mert_foundry.pipeline.features.plan import Part
from mert_foundry.pipeline.features.resume import (
    PARTS,
    ROOT,
    begun_as,
    find_finished,
    has_table,
    is_begun_with,
    prepare_store,
    refuse_other_folder,
    reopen_store,
    stored_part_rows,
)
from mert_foundry.pipeline.features.store import finish_store, table_digest
from mert_foundry.pipeline.storage import files

SEVERAL_FAILURES = 3  # of which an error tells


class ExtractionError(ValueError):
    """Parts of a store could not be made; what was published is whole, and the same call does just the others."""


class Result(BaseModel):
    """A finished store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dropped: dict[str, str] = Field(description="Tracks that could not be used, by key: reason and detail")
    bytes: int = Field(description="Of the features as stored")


def extract(config: ExtractConfig, processes: int = 1) -> str:
    """Make a feature store on this machine, or do what is missing of one; returns its location, `config.out`.

    Row i of a pooled store is line i of a table that was given as input; so are the columns of its track table. Where every
    frame has a row, those of line i begin at `offset[i]` and are `length[i]`.

    Args:
        processes: that share the parts; 1: this process does them, with one arithmetic thread meanwhile.

    Raises:
        ExtractionError: parts could not be made, naming the first ones.
        OSError, ValueError, UsageError: as `prepare`.
    """
    config = config.model_copy(update={"device": resolve_device(config.device)})
    check_precision("precision", config.precision, config.device)
    check_cuda(config.device)
    check_out(config.out)
    plan, _ = prepare(config)
    with hold(config.out):
        prepare_store(config.out, plan.description, config.overwrite)
        missing = missing_parts(config, plan)
        failures: dict[str, str] = {}
        if missing:
            reopen_store(config.out, plan.description)
            failures = work_here(plan, missing, config.device, "extract", processes)
        if failures:
            reported = "; ".join(f"{name}: {message}" for name, message in sorted(failures.items())[:SEVERAL_FAILURES])
            raise ExtractionError(
                f"{config.out}: {len(failures)} of {len(plan.parts)} parts could not be made: {reported}"
            )
        finish(config, plan)
    return config.out


def prepare(config: ExtractConfig, ranks: int = 0) -> tuple[Plan, Input]:
    """All that is decided before the first part; `ranks`: processes that each do this at once, 0 for one alone.

    Raises as `open_model`, `read_input` and `make_plan`; what is quickly found wrong comes first.
    """
    layers = None if config.layers == "all" else config.layers
    model = open_model(config.model, torch.device("cpu"), "fp32", layers)
    found = read_input(config, ranks)
    plan = plan_as_begun(config, model, found)
    return in_names_of(plan, begun_as(config.out, plan.description)), found


def plan_as_begun(config: ExtractConfig, model: FeatureModel, found: Input) -> Plan:
    """The plan; for a store that was begun with parts of another size, and is else the same, with parts of that size."""
    plan = make_plan(config, model, found)
    rows = stored_part_rows(config.out)
    own = plan.order.layout
    if own.row == "frame" or config.storage.part_tracks is not None or rows in (None, own.part_rows):
        return plan
    sizes = config.storage.model_copy(update={"part_tracks": rows})
    as_begun = make_plan(config.model_copy(update={"storage": sizes}), model, found)
    return as_begun if is_begun_with(config.out, as_begun.description) else plan


def check_out(out: str) -> None:
    """Raise UsageError, FolderError or ValueError when no store can be made there, or something else is there; writes
    nothing.
    """
    if files.is_local(out):
        check_writable(files.local_path(files.join(out, ROOT)))
    refuse_other_folder(out)


@contextmanager
def hold(out: str) -> Iterator[None]:
    """Keep other processes out of a local store."""
    with locked(files.local_path(files.join(out, PARTS)), "extracting") if files.is_local(out) else nullcontext():
        yield


def missing_parts(config: ExtractConfig, plan: Plan) -> list[Part]:
    """The parts that are not there yet."""
    finished = find_finished(config.out, plan.order.layout, plan.order.digest)
    return [part for part in plan.parts if part.number not in finished]


def work_here(plan: Plan, parts: list[Part], device: str, title: str | None, processes: int) -> dict[str, str]:
    """Do parts in this process, or in several; the message of each that failed. `title`: of the progress, if shown."""
    total = None if plan.seconds is None else sum(part.seconds for part in parts)
    with Progress(title, total) if title else nullcontext() as progress:
        failures: dict[str, str] = {}

        def report(seconds: float) -> None:
            if progress:
                progress.update(progress.done + seconds, f"{len(failures)} failed" if failures else "")

        if processes > 1 and len(parts) > 1:
            for part, (seconds, failure) in zip(parts, in_processes(plan.order, parts, device, processes)):
                failures |= {part.name: failure} if failure else {}
                report(seconds)
            return failures
        with one_thread():
            extractor = PartExtractor(plan.order, device)
            for part in parts:
                if failure := attempt(extractor, part, report):
                    failures[part.name] = failure
    return failures


def in_processes(
    order: WorkOrder, parts: list[Part], device: str, processes: int
) -> Iterator[tuple[float, str | None]]:
    """For each part its audio seconds, and the message if it failed."""
    work = partial(run_part, order.model_dump_json(), device)
    yield from map_in_processes(work, parts, processes, crashed=part_crashed)


def run_part(order: str, device: str, part: Part) -> tuple[float, str | None]:
    """Do a part in a process that does nothing else; its audio seconds, and the message if it failed."""
    done: list[float] = []
    try:
        failure = attempt(extractor_of(order, device), part, done.append)
    except (OSError, ValueError) as error:  # of the model, before the part
        failure = f"{type(error).__name__}: {error}"
    return sum(done), failure


@lru_cache(maxsize=1)
def extractor_of(order: str, device: str) -> PartExtractor:
    """The extractor of this process."""
    return PartExtractor(WorkOrder.model_validate_json(order), device)


def part_crashed(part: Part) -> tuple[float, str | None]:
    """What is said of a part whose process died."""
    return 0.0, "its process died, also when it had this part alone"


def attempt(extractor: PartExtractor, part: Part, report: Callable[[float], None]) -> str | None:
    """Do a part; the message if it failed."""
    try:
        extractor.run(part, report)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """One arithmetic thread in this process, as PartExtractor wants it, and afterwards as many as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finish(config: ExtractConfig, plan: Plan) -> Result | None:
    """Complete the store when all parts are there, with a track table that fits the input; None when one is missing."""
    records = find_finished(config.out, plan.order.layout, plan.order.digest)
    if len(records) < len(plan.parts):
        return None
    table, dropped = plan.finished_table(records.values())
    if not has_table(config.out, table_digest(table)):
        finish_store(config.out, plan.order.layout, plan.description, table, dropped)
    stored = sum(size for record in records.values() for size, _ in record.files.values())
    return Result(dropped=dropped, bytes=stored)
