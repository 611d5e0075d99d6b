"""A published task: where its data comes from, which files it needs, and how they are read."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mert_foundry.pipeline.probe_sets.checks import check_audio, check_clips
from mert_foundry.pipeline.probe_sets.task import LabelledSet, ProbeClip, ProbeTask
from mert_foundry.pipeline.storage.folder_kinds import FolderError


@dataclass(frozen=True)
class PublishedTask:
    """One task of a published set.

    folder: the set's folder within the data folder. page: where to download it. files: what is looked for, as patterns
    (`A or B` where either will do); a folder with something for each of them offers the task. split: the published
    split, in words. counts: train, valid and test tracks of the whole set. read_clips: from the set's folder to its
    clips.
    """

    task: ProbeTask
    folder: str
    page: str
    files: tuple[str, ...]
    split: str
    counts: tuple[int, int, int]
    read_clips: Callable[[Path], list[ProbeClip]]

    def is_in(self, root: Path) -> bool:
        """Whether a set's folder has something for each of `files`."""
        return all(
            any(next(root.glob(pattern), None) is not None for pattern in patterns.split(" or "))
            for patterns in self.files
        )

    def read(self, root: Path) -> LabelledSet:
        """All clips of a set's folder.

        Raises:
            FolderError: a file is not there, or a part of the audio is not.
            ValueError: a table is not as it is published.
        """
        try:
            if not root.is_dir():
                raise FolderError(f"{root} is not there")
            clips = self.read_clips(root)
            check_audio(root, clips, lambda index: f"{clips[index].split} split")
        except FolderError as error:
            raise FolderError(f"{self.task.name}: {error} (it needs {', '.join(self.files)}; {self.page})") from error
        check_clips(self.task, clips, lambda index: f"{self.task.name}: {clips[index].path}")
        return LabelledSet(task=self.task, root=str(root), clips=tuple(clips))


def share_of_hash(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone: what a split by hash is drawn from."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64
