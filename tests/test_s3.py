"""The whole data side on an object store: corpus, manifest and shards on S3, labelled on Ray, streamed back."""

import subprocess
import sys
from pathlib import Path

import pytest

from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig

pytestmark = [pytest.mark.process, pytest.mark.s3, pytest.mark.slow]


def mert(*arguments: str) -> subprocess.CompletedProcess:
    """Run a command of the console script."""
    program = "import sys; from mert_foundry.jobs.command.line import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)


def test_manifest_label_verify_and_stream_on_s3(bucket: str, clips: Path, tiny_codec: Path, tmp_path: Path) -> None:
    import s3fs

    s3 = s3fs.S3FileSystem()
    chosen = sorted(path for path in clips.rglob("*") if path.is_file())[:3]
    for path in chosen:
        s3.put_file(str(path), f"mert-test/corpus/{path.parent.name}/{path.name}")
    label = [
        "label",
        f"manifest={bucket}/manifest",
        "actors=1",
        "segments.segment_seconds=5",
        "segments.examples_per_shard=2",
        f"teachers=[{{kind: encodec, weights: {tiny_codec}, codebooks: 4}}]",
    ]

    scanned = mert("manifest", f"root={bucket}/corpus", f"out={bucket}/manifest", "splits={}")
    assert scanned.returncode == 0, scanned.stderr
    labelled = mert(*label, f"out={bucket}/shards")
    assert labelled.returncode == 0, labelled.stderr
    again = mert(*label, f"out={bucket}/shards")
    assert "0 to do" in again.stdout, again.stderr
    verified = mert("verify", f"{bucket}/shards", "--manifest", f"{bucket}/manifest")
    assert verified.returncode == 0, verified.stdout

    local = mert(*label, f"out={tmp_path / 'shards'}")
    assert local.returncode == 0, local.stderr
    for path in sorted((tmp_path / "shards").glob("[!.]*")):
        assert s3.cat_file(f"mert-test/shards/{path.name}") == path.read_bytes(), path.name

    config = StreamConfig(batch_size=2, crop_samples=16_000, threads=2)
    with BatchStream(f"{bucket}/shards", load_index(f"{bucket}/shards"), "train", config, 0) as remote:
        with BatchStream(str(tmp_path / "shards"), load_index(str(tmp_path / "shards")), "train", config, 0) as here:
            for _ in range(4):
                (batch, position), (expected, expected_position) = next(remote), next(here)
                assert batch["key"] == expected["key"] and position == expected_position
                assert batch["audio"].equal(expected["audio"]) and batch["codes"].equal(expected["codes"])
