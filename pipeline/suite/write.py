"""The suite on disk: audio files one by one, then each task's clips, then suite.yaml."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import yaml
from pydantic import Field, ValidationError

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.storage.documents import Document, first_error
from mert_foundry.pipeline.storage.files import publish_bytes, publishing
from mert_foundry.pipeline.storage.folder_kinds import SUITE, check_output
from mert_foundry.pipeline.suite.augmentation import encode
from mert_foundry.pipeline.suite.clip import AudioPlan, FamilyPlan, Plans, Size, TaskPlan, make_audio
from mert_foundry.pipeline.suite.sources import SourcePackage

VERSION = 1
CLIPS = "clips.jsonl"
COMPRESSION = 0.94  # of libsndfile's Vorbis, about 30 kbit/s at 24 kHz mono
DIGEST = "PCM SHA-256 "


class TaskSummary(Document):
    """A task of a suite in numbers."""

    clips: dict[str, int] = Field(description="Clips by split or fold, and by condition after a slash")
    seconds: float = Field(description="Seconds of labelled audio")


class Suite(Document):
    """suite.yaml: what the suite was made from, and what it holds."""

    version: int = Field(description="Version of the script: another one makes other clips")
    size: Size = Field(description="small or full")
    seed: int = Field(description="Random seed")
    sources: dict[str, SourcePackage] = Field(default={}, description="The packages, by name")
    tasks: dict[str, TaskSummary] = Field(default={}, description="The tasks, by name")
    fingerprint: str = Field(default="", description="SHA-256 over all labels and all samples before they were encoded")


@dataclass(frozen=True)
class MakeAudio:
    """Makes one audio file; passes between processes."""

    out: Path
    plans: Plans

    def __call__(self, plan: AudioPlan) -> float:
        """Write the file, whole or not at all; gives its seconds."""
        samples = make_audio(plan, self.plans.sources, self.plans.seed)
        with publishing(str(self.out / plan.path)) as temporary:
            write_audio(temporary, samples)
        return plan.seconds


def write_audio(path: Path, samples: np.ndarray) -> None:
    """int16 `[T]` at 24 kHz as Ogg Vorbis, with the SHA-256 of the samples as its comment."""
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "VORBIS", format="OGG", compression_level=COMPRESSION) as file:
        file.comment = DIGEST + hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
        encode(file, samples)


def read_digest(path: Path) -> str:
    """The SHA-256 of a file's samples before they were encoded. Raises ValueError when the file names none."""
    with soundfile.SoundFile(path) as file:
        comment = file.comment
    if not comment.startswith(DIGEST):
        raise ValueError(f"{path}: the comment has no digest of the samples; delete the file to make it again")
    return comment.removeprefix(DIGEST)


def read_suite(out: Path) -> Suite | None:
    """What a folder holds; None when it holds no suite. Raises ValueError naming the file when it cannot be read."""
    path = out / SUITE.marker
    if not path.is_file():
        return None
    try:
        return Suite.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        reason = first_error(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}") from error


def begin(out: Path, plans: Plans) -> Suite:
    """The suite that a folder holds or will hold.

    Raises:
        FolderError: the folder is of another kind.
        ValueError: it holds a suite of another size, seed or version, or something else.
    """
    check_output(str(out), SUITE)
    found = read_suite(out)
    if found is None:
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no {SUITE.marker}; name a new folder")
        found = Suite(version=VERSION, size=plans.size, seed=plans.seed)
        publish_suite(out, found)
    for name, there, asked in (
        ("version", found.version, VERSION),
        ("size", found.size, plans.size),
        ("seed", found.seed, plans.seed),
    ):
        if there != asked:
            raise ValueError(f"{out} holds a suite of {name} {there}, not {asked}; name a new folder")
    return found


def missing_audio(out: Path, audio: Iterable[AudioPlan]) -> list[AudioPlan]:
    """What is not there yet."""
    return [plan for plan in audio if not (out / plan.path).is_file()]


def write_tasks(out: Path, found: Suite, plan: FamilyPlan, sources: dict[str, SourcePackage]) -> Suite:
    """Write each task's documents and suite.yaml, which then names all tasks of the folder."""
    lengths = {f"../{audio.path}": audio.seconds for audio in plan.audio}
    summaries = dict(found.tasks)
    for task in plan.tasks:
        publish_bytes(str(out / task.task.name / CLIPS), b"".join(clip_lines(task)))
        described = {**task.task.model_dump(mode="json"), "clips": CLIPS}
        publish_bytes(str(out / task.task.name / "task.yaml"), as_yaml(described))
        summaries[task.task.name] = summarise(task, lengths)
    suite = found.model_copy(
        update={
            "tasks": dict(sorted(summaries.items())),
            "sources": {**found.sources, **sources},
            "fingerprint": content_fingerprint(out, sorted(summaries)),
        }
    )
    publish_suite(out, suite)
    return suite


def clip_lines(task: TaskPlan) -> Iterator[bytes]:
    """One line of JSON a clip."""
    for clip in task.clips:
        yield clip.model_dump_json(exclude_defaults=True).encode() + b"\n"


def summarise(task: TaskPlan, lengths: dict[str, float]) -> TaskSummary:
    """Clips by split or fold, and seconds."""
    counts: dict[str, int] = {}
    for clip in task.clips:
        part = clip.split or f"fold {clip.fold}"
        name = f"{part}/{clip.condition}" if clip.condition else part
        counts[name] = counts.get(name, 0) + 1
    seconds = sum(((clip.end or lengths[clip.path]) - clip.start) for clip in task.clips)
    return TaskSummary(clips=counts, seconds=round(seconds, 3))


def content_fingerprint(out: Path, tasks: Iterable[str]) -> str:
    """SHA-256 over every task's documents and the digests of all audio files, by path."""
    digest = hashlib.sha256()
    for task in tasks:
        for name in ("task.yaml", CLIPS):
            digest.update((out / task / name).read_bytes())
    for path in sorted((out / "audio").rglob("*.ogg")):
        digest.update(f"{path.relative_to(out).as_posix()} {read_digest(path)}\n".encode())
    return digest.hexdigest()


def publish_suite(out: Path, suite: Suite) -> None:
    """Write suite.yaml."""
    publish_bytes(str(out / SUITE.marker), as_yaml(suite.model_dump(mode="json")))


def as_yaml(content: dict) -> bytes:
    """YAML with the keys in their order."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110).encode()
