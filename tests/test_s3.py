"""The whole data side on an object store: corpus, manifest and shards on S3, labelled on Ray, streamed back."""

import shutil
from pathlib import Path

import pytest
from audio_files import mert

from mert_foundry.jobs import label as label_job
from mert_foundry.jobs import manifest as manifest_job
from mert_foundry.jobs import verify as verify_job
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.shards.index import load_index
from mert_foundry.pipeline.stream.batch_stream import BatchStream, StreamConfig

pytestmark = [pytest.mark.process, pytest.mark.s3, pytest.mark.slow]


def test_manifest_label_verify_and_stream_on_s3(
    bucket: str, clips: Path, tiny_codec: Path, ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    import s3fs

    s3 = s3fs.S3FileSystem()
    chosen = sorted(path for path in clips.rglob("*") if path.is_file())[:3]
    for path in chosen:
        copied = tmp_path / "corpus" / path.parent.name / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
        s3.put_file(str(path), f"mert-test/corpus/{path.parent.name}/{path.name}")
    label = [
        "actors=1",
        "segments.segment_seconds=5",
        "segments.examples_per_shard=2",
        f"teachers=[{{kind: encodec, weights: {tiny_codec}, codebooks: 4}}]",
    ]

    for folder in (bucket, str(tmp_path)):
        assert run(manifest_job.main, [f"root={folder}/corpus", f"out={folder}/manifest", "splits={}"], "") == 0
    remote = [f"manifest={bucket}/manifest", f"out={bucket}/shards"]
    labelled = mert("label", *label, *remote)  # on a Ray of its own, whose workers know where the bucket is
    assert labelled.returncode == 0, labelled.stderr
    capsys.readouterr()
    assert run(label_job.main, [*label, *remote], "") == 0
    assert "0 to do" in capsys.readouterr().out
    assert run(verify_job.main, [f"{bucket}/shards", "--manifest", f"{bucket}/manifest"], "") == 0

    local = [f"manifest={tmp_path / 'manifest'}", f"out={tmp_path / 'shards'}", f"address={ray_address}"]
    assert run(label_job.main, [*label, *local], "") == 0
    for path in sorted((tmp_path / "shards").glob("[!.]*")):
        assert s3.cat_file(f"mert-test/shards/{path.name}") == path.read_bytes(), path.name

    config = StreamConfig(batch_size=2, crop_samples=16_000, threads=2)
    with BatchStream(f"{bucket}/shards", load_index(f"{bucket}/shards"), "train", config, 0) as there:
        with BatchStream(str(tmp_path / "shards"), load_index(str(tmp_path / "shards")), "train", config, 0) as here:
            for _ in range(4):
                (batch, position), (expected, expected_position) = next(there), next(here)
                assert batch["key"] == expected["key"] and position == expected_position
                assert batch["audio"].equal(expected["audio"]) and batch["codes"].equal(expected["codes"])
