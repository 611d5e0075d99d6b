"""Tracks labelled one by one, each in a process of its own, to find the one that ends its process."""

import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

TRIES = 2  # of a track: its process may have been ended from outside
MEMORY_SHARE = 0.8  # of what is available, that one process may take
OUT_OF_MEMORY = 77  # exit code of a process that could not get memory
# Imported once, in the server that processes are forked from.
PRELOADED = ["mert_foundry.pipeline.labelling.work_order"]


@dataclass(frozen=True)
class Death:
    """How a process ended that did not come to its end; `reason` is `crashed` or `out_of_memory`."""

    reason: str
    detail: str


def find_death(work: Callable[[], object]) -> Death | None:
    """How processes die that do nothing but `work`, which can be pickled; None when one of two comes to its end.

    MemoryError is a death. Another exception of `work` is none: it is raised again where the work is really done.
    """
    death = None
    for _ in range(TRIES):
        death = _run_alone(work)
        if death is None:
            return None
    return death


def limit_memory(share: float = MEMORY_SHARE) -> None:
    """Let this process take no more than a share of the memory available now: beyond, it gets MemoryError or ends."""
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    limit = int(held.split()[1]) * 1024 + int(share * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _run_alone(work: Callable[[], object]) -> Death | None:
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    killed_before = _killed_for_memory()
    theirs, ours = context.Pipe()
    process = context.Process(target=_work_and_exit, args=(work, theirs))
    process.start()
    theirs.close()
    process.join()
    ours.close()
    code = process.exitcode or 0
    if code == OUT_OF_MEMORY:
        return Death(
            "out_of_memory", f"its process got no more memory, within {MEMORY_SHARE:.0%} of what was available"
        )
    if code == -signal.SIGKILL and _killed_for_memory() > killed_before:
        return Death("out_of_memory", "the kernel ended its process for lack of memory")
    if code < 0:
        return Death("crashed", f"its process ended by {signal.Signals(-code).name}, alone and twice")
    return Death("crashed", f"its process ended with exit code {code}, alone and twice") if code else None


def _work_and_exit(work: Callable[[], object], connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    try:
        work()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception:  # it is raised again where the shard is made
        pass
    os._exit(0)


def _end_with_parent(connection: Connection) -> None:
    with suppress(EOFError, OSError):
        connection.recv()
    os._exit(1)


def _killed_for_memory() -> int:
    """How many processes the kernel has ended for lack of memory, since it runs."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts.get("oom_kill", 0))
