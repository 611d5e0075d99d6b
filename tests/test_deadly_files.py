"""A file that ends every process that opens it is found, named and dropped; its shard is finished without it."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from audio_files import noise, tone, write_audio
from deadly_files import killing_all_that_open
from folders import make_manifest

from mert_foundry.jobs import label as label_job
from mert_foundry.jobs import verify as verify_job
from mert_foundry.pipeline.labelling.alone import find_death, limit_memory
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.shards.record import load_record

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]


def fill_memory(share: float) -> None:
    """Take memory until there is no more of the share of it that this process may have."""
    limit_memory(share)
    taken = []
    while True:
        taken.append(np.ones(1 << 23))


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


def fail() -> None:
    raise OSError("a file that cannot be read, which another run may reach")


def test_deaths_of_a_process_and_their_reasons():
    assert find_death(partial(print, end="")) is None and find_death(fail) is None
    death = find_death(partial(fill_memory, 0.02))
    assert death is not None and death.reason == "out_of_memory" and "memory" in death.detail
    death = find_death(partial(end_by, signal.SIGSEGV))
    assert death is not None and (death.reason, "SIGSEGV" in death.detail) == ("crashed", True)
    death = find_death(partial(os._exit, 3))
    assert death is not None and (death.reason, "exit code 3" in death.detail) == ("crashed", True)


@pytest.mark.timeout(180)
def test_the_file_that_kills_its_process_is_dropped_and_the_rest_of_its_shard_kept(
    tmp_path: Path, ray_address: str, run_here: Callable[..., tuple[int, str, str]]
):
    root, out = tmp_path / "audio", tmp_path / "shards"
    for number in range(3):
        write_audio(root / f"good{number}.wav", tone(300 + 100 * number, 3.1))
    deadly = write_audio(root / "deadly.flac", noise(400, 48_000, seed=1), 48_000)
    manifest = make_manifest(root, tmp_path / "manifest", group_by="track", splits={})
    arguments = [
        f"manifest={manifest}", f"out={out}",
        'teachers=[{kind: cqt, lowest_frequency: 500, bins: 24, bins_per_octave: 12}]',
        "segments.segment_seconds=2", "segments.shortest_seconds=1", "segments.examples_per_shard=1000",
        f"address={ray_address}",
    ]  # fmt: skip
    with killing_all_that_open(deadly) as killed:
        code, _, errors = run_here(label_job, *arguments)
    assert code == 0, errors
    assert len(killed) == 4, "two workers of the shard, and two processes of the file's own"
    assert "train-000000: 2 workers died of it" in errors
    record = load_record(str(out), "train-000000")
    (dropped,) = record.dropped_tracks
    assert dropped.track.startswith("deadly") and dropped.reason == "crashed" and "SIGKILL" in dropped.detail
    assert len({entry.track for entry in record.members}) == 3 and record.examples == 6
    assert load_index(str(out)).dropped == {"crashed": dropped.segments}
    assert run_here(verify_job, out, "--manifest", manifest)[0] == 0
    code, said, _ = run_here(label_job, *arguments)
    assert code == 0 and "0 to do" in said
    assert json.loads((out / "index.json").read_bytes())["dropped"]["crashed"] > 100
