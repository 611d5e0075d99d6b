"""One extraction from its settings to the finished store. Who does the parts is the caller's choice.

`extract` does all of them on this machine, without Ray, for other jobs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from pydantic import BaseModel, ConfigDict, Field

from mert_foundry.jobs.cluster.torchrun import rank_group
from mert_foundry.jobs.cluster.worker_processes import map_in_processes
from mert_foundry.jobs.command.preflight import check_cuda, check_precision, check_writable, locked, resolve_device
from mert_foundry.jobs.command.progress import AUDIO, TOKENS, Progress, Unit
from mert_foundry.jobs.extraction.models import open_model
from mert_foundry.jobs.extraction.part import ExtractionOrder, PartExtractor
from mert_foundry.jobs.extraction.plan import Plan, in_stored_names, make_plan
from mert_foundry.jobs.extraction.settings import ExtractConfig
from mert_foundry.jobs.extraction.source import Input, read_input
from mert_foundry.model.features.feature_model import FeatureModel
from mert_foundry.model.training.ranks import wait_for_all
from mert_foundry.pipeline.features.plan import Part
from mert_foundry.pipeline.features.resume import (
    PARTS,
    ROOT,
    description_as_stored,
    find_finished,
    has_description,
    has_table,
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


class StoreResult(BaseModel):
    """A finished store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dropped: dict[str, str] = Field(description="Tracks that could not be used, by key: reason and detail")
    bytes: int = Field(description="Of the features as stored")


@dataclass(frozen=True)
class Ranks:
    """Processes that torchrun started: the number of this one, and how many there are; 0 for a process alone."""

    rank: int = 0
    count: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process looks at the store, reports, and finishes it."""
        return self.rank == 0


@dataclass(frozen=True)
class Extraction:
    """What came of an extraction in this process.

    failures: the message of each part that failed, by its name. result: None while parts are missing, and for other
    ranks than the first.
    """

    plan: Plan
    failures: dict[str, str]
    result: StoreResult | None


# Does parts; returns the message of each that failed, by its name.
DoParts = Callable[[Plan, list[Part]], dict[str, str]]
# Reports the plan, what was found in the input, and the parts to do.
Report = Callable[[Plan, Input, list[Part]], None]


def extract(config: ExtractConfig, processes: int = 1, report: Report = lambda plan, found, missing: None) -> str:
    """Make a feature store on this machine, or do what is missing of one; returns its location, `config.out`.

    Row i of a pooled store is line i of a table that was given as input; so are the columns of its track table. Where
    every frame has a row, those of line i begin at `offset[i]` and are `length[i]`.

    Args:
        processes: that share the parts; 1: this process does them, with one arithmetic thread meanwhile.
        report: called before the first part; what it raises ends the extraction.

    Raises:
        ExtractionError: parts could not be made, naming the first ones.
        OSError, ValueError, UsageError: as `run_extraction`.
    """
    config = resolve(config)
    check_cuda(config.device)

    def do_parts(plan: Plan, parts: list[Part]) -> dict[str, str]:
        return work_here(plan, parts, config.device, "extract", processes)

    done = run_extraction(config, do_parts, report=report)
    if done.failures:
        first = "; ".join(f"{name}: {message}" for name, message in sorted(done.failures.items())[:SEVERAL_FAILURES])
        raise ExtractionError(
            f"{config.out}: {len(done.failures)} of {len(done.plan.parts)} parts could not be made: {first}"
        )
    return config.out


def resolve(config: ExtractConfig) -> ExtractConfig:
    """The settings with the device that `auto` stands for. Raises UsageError for a precision that it does not have."""
    config = config.model_copy(update={"device": resolve_device(config.device)})
    check_precision("precision", config.precision, config.device)
    return config


def run_extraction(
    config: ExtractConfig,
    do_parts: DoParts,
    ranks: Ranks = Ranks(),
    report: Report = lambda plan, found, missing: None,
) -> Extraction:
    """Plan, do the parts that are missing, and finish the store; under torchrun every rank calls it.

    Raises as `check_out`, `prepare` and `prepare_store`.
    """
    if ranks.is_first:
        check_out(config.out)
    plan, found = prepare(config, ranks.count)
    # The first rank looks at what is there, alone; the others join it once it is known that the work can go on.
    with hold(config.out) if ranks.is_first else nullcontext():
        if ranks.is_first:
            prepare_store(config.out, plan.description, config.overwrite)
        with rank_group(ranks.count):
            missing = missing_parts(config, plan)
            if ranks.is_first:
                report(plan, found, missing)
                if missing:
                    reopen_store(config.out, plan.description)
            wait_for_all()  # or a rank that is late would find the parts of another one done
            failures = do_parts(plan, missing) if missing else {}
            wait_for_all()
        return Extraction(plan, failures, finish(config, plan) if ranks.is_first else None)


def prepare(config: ExtractConfig, ranks: int = 0) -> tuple[Plan, Input]:
    """All that is decided before the first part; `ranks`: processes that each do this at once, 0 for one alone.

    Raises as `open_model`, `read_input` and `make_plan`; what is quickly found wrong comes first.
    """
    layers = None if config.layers == "all" else config.layers
    model = open_model(config.model, torch.device("cpu"), "fp32", layers)
    found = read_input(config, ranks)
    plan = plan_like_store(config, model, found)
    return in_stored_names(plan, description_as_stored(config.out, plan.description)), found


def plan_like_store(config: ExtractConfig, model: FeatureModel, found: Input) -> Plan:
    """The plan; if the store that is there differs from it by the size of its parts alone, with parts of that size."""
    plan = make_plan(config, model, found)
    rows = stored_part_rows(config.out)
    own = plan.order.layout
    if own.row == "frame" or config.storage.part_tracks is not None or rows in (None, own.part_rows):
        return plan
    sizes = config.storage.model_copy(update={"part_tracks": rows})
    like_store = make_plan(config.model_copy(update={"storage": sizes}), model, found)
    return like_store if has_description(config.out, like_store.description) else plan


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


def unit_of(plan: Plan) -> Unit:
    """What progress is counted in: audio seconds; of documents tokens, each of which counts as a frame's time."""
    if plan.order.kind != "documents":
        return AUDIO
    frame_rate = plan.sample_rate / plan.hop
    return TOKENS._replace(size=TOKENS.size / frame_rate, rate_size=TOKENS.rate_size / frame_rate)


def work_here(plan: Plan, parts: list[Part], device: str, title: str | None, processes: int) -> dict[str, str]:
    """Do parts in this process, or in several; the message of each that failed. `title`: of the progress, if shown."""
    total = None if plan.seconds is None else sum(part.seconds for part in parts)
    with Progress(title, total, unit=unit_of(plan)) if title else nullcontext() as progress:
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
    order: ExtractionOrder, parts: list[Part], device: str, processes: int
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
    return PartExtractor(ExtractionOrder.model_validate_json(order), device)


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


def finish(config: ExtractConfig, plan: Plan) -> StoreResult | None:
    """Complete the store when all parts are there, with a track table that fits the input; None when one is missing."""
    records = find_finished(config.out, plan.order.layout, plan.order.digest)
    if len(records) < len(plan.parts):
        return None
    table, dropped = plan.finished_table(records.values())
    if not has_table(config.out, table_digest(table)):
        finish_store(config.out, plan.order.layout, plan.description, table, dropped)
    stored = sum(size for record in records.values() for size, _ in record.files.values())
    return StoreResult(dropped=dropped, bytes=stored)
