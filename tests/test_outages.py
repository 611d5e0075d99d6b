"""A stream from an object store through each kind of outage: the batches of an undisturbed one, or one clear line."""

from pathlib import Path

import pytest
import torch
from fault_proxy import FAULTS, LEAST_MET, FaultProxy
from shard_fixtures import SPECS, write_set

from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig, validation_batches

pytestmark = [pytest.mark.process, pytest.mark.s3, pytest.mark.slow]


@pytest.fixture
def shards(bucket: str, proxy: FaultProxy) -> str:
    folder = f"{bucket}/shards"
    write_set(folder, [3, 4, 5], valid_sizes=[2])
    return folder


def config(**changes: object) -> StreamConfig:
    return StreamConfig(
        **{"batch_size": 2, "crop_samples": 6400, "threads": 2, "prefetch": 1, "patience": 60.0} | changes
    )


def assert_same(found: dict, expected: dict) -> None:
    assert found["key"] == expected["key"]
    for name in ("audio", "valid", *(spec.name for spec in SPECS)):
        assert torch.equal(found[name], expected[name]), name


def test_batches_through_every_outage_are_those_of_an_undisturbed_stream(
    shards: str, proxy: FaultProxy, tmp_path: Path
):
    write_set(tmp_path, [3, 4, 5], valid_sizes=[2])
    index = load_index(str(tmp_path))
    with (
        BatchStream(shards, load_index(shards), "train", config(), 0) as remote,
        BatchStream(str(tmp_path), index, "train", config(), 0) as local,
    ):
        for fault in FAULTS:
            proxy.strike_briefly(fault)
            for _ in range(4):
                (found, position), (expected, expected_position) = next(remote), next(local)
                assert position == expected_position
                assert_same(found, expected)
            assert proxy.met >= LEAST_MET[fault], fault
    proxy.strike_briefly("503")
    for found, expected in zip(
        validation_batches(shards, load_index(shards), "valid", config()),
        validation_batches(str(tmp_path), index, "valid", config()),
        strict=True,
    ):
        assert_same(found, expected)
    assert proxy.met >= LEAST_MET["503"]


def test_what_is_refused_for_a_moment_is_asked_for_again(shards: str, proxy: FaultProxy):
    for fault in ("missing", "forbidden"):
        with BatchStream(shards, load_index(shards), "train", config(threads=1), 0) as remote:
            proxy.strike(fault, 600.0, most=2)
            next(remote)
            assert proxy.met == 2


def test_patience_ends_with_the_name_of_what_was_asked_for(shards: str, proxy: FaultProxy):
    faults = {"missing": FileNotFoundError, "forbidden": PermissionError, "500": OSError, "short": OSError}
    for fault, error in faults.items():
        proxy.strike(fault, 600.0)
        with BatchStream(shards, load_index(shards), "train", config(patience=1.0, threads=1), 0) as remote:
            with pytest.raises(error, match=r"train-\d+\.tar: \S+\.(flac|pcm\.npy)"):
                next(remote)
