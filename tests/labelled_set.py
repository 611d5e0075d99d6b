"""A small labelled shard set with its manifest, made by the real teachers without Ray, for tests that look at one."""

from pathlib import Path

import torch
import yaml
from audio_files import noise, tone, write_audio

from mert_foundry.pipeline.labelling.plan import SegmentConfig, plan_shards
from mert_foundry.pipeline.labelling.process_shard import process_shard
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest
from mert_foundry.pipeline.shards.index import ShardIndex, build_index
from mert_foundry.pipeline.teachers.cqt import CqtTeacherConfig
from mert_foundry.pipeline.teachers.encodec import EncodecTeacherConfig
from mert_foundry.pipeline.teachers.random_projection import RandomProjectionTeacherConfig
from mert_foundry.pipeline.teachers.registry import build_teachers

# A file name that would be markup, would leave its attribute, and would end a script.
HOSTILE = "a\"'&<img src=x onerror=document.title=1>/b</script><script>document.title=1</script>.wav"
SEGMENTS = SegmentConfig(segment_seconds=4.0, shortest_seconds=1.0, examples_per_shard=3)


def write_manifest_folder(root: Path, out: Path, seed: int = 0) -> Path:
    """Four tracks, one of them with a hostile name, and a rejected file with one; returns `out`."""
    write_audio(root / "low.wav", tone(220, 9) + 0.3 * tone(440, 9))
    write_audio(root / "high.wav", tone(1760, 5) * 0.2 + noise(5, seed=seed))
    write_audio(root / "noise.wav", noise(3, seed=seed + 1))
    write_audio(root / HOSTILE, tone(523.25, 5) + noise(5, seed=2))
    (root / "<b>not audio").write_text("no audio here")
    config = ManifestConfig(root=str(root), out=str(out), splits={"valid": 0.3}, group_by="track")
    write_manifest(config, scan(config))
    return out


def label_manifest(manifest: Path, out: Path, codec: Path, lowest_frequency: float = 110.0) -> ShardIndex:
    """Shards of codes, a CQT of four octaves, and random-projection codes, with label.yaml beside them."""
    teachers = [
        EncodecTeacherConfig(kind="encodec", weights=str(codec), codebooks=4),
        CqtTeacherConfig(kind="cqt", lowest_frequency=lowest_frequency, bins=48, bins_per_octave=12),
        RandomProjectionTeacherConfig(kind="random_projection", codebook_size=64),
    ]
    listing = load_manifest(str(manifest))
    built = build_teachers(teachers, "cpu")
    tasks = plan_shards(listing, SEGMENTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for task in tasks:
        process_shard(task, built, listing.root, str(out), {"device": "cpu"})
    torch.set_num_threads(threads)
    document = {"teachers": [teacher.model_dump(mode="json") for teacher in teachers]}
    (out / "label.yaml").write_text(yaml.safe_dump(document))
    return build_index(
        str(out),
        [task.name for task in tasks],
        [teacher.spec for teacher in built],
        name="test",
        manifest_sha256=listing.sha256,
        segment_seconds=SEGMENTS.segment_seconds,
        audio_member="flac",
    )
