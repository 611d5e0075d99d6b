"""Every file of a folder, or of a list, decoded once for its true length; results are there for the next run.

They lie in a hidden file in the feature store, as known_files.py of the manifest has it. The file is no output: it may
be deleted at any time.
"""

from collections.abc import Callable, Sequence

from mert_foundry.pipeline.manifest.examine import ExamineAll, examine_in_threads, result_version
from mert_foundry.pipeline.manifest.known_files import DAMAGE, KnownFile, KnownFiles, read_known, write_known
from mert_foundry.pipeline.manifest.listing import check_folder, list_files, stamp_files
from mert_foundry.pipeline.manifest.placement import place
from mert_foundry.pipeline.manifest.rows import Reject, Track
from mert_foundry.pipeline.manifest.scan import ScanProgress, find_or_examine, tracks_and_rejects
from mert_foundry.pipeline.manifest.settings import ManifestConfig

CACHE = ".scan.jsonl.gz"


class ScanFile(KnownFiles):
    """Results in one file, which is written as a whole: the ranks of an extraction scan the same files at the same
    time.
    """

    def __init__(self, location: str, version: dict):
        super().__init__(version)
        self._location = location
        try:
            self._remember(read_known(location, version)[1])
        except (OSError, *DAMAGE):
            pass  # all files are decoded

    def _write(self, lines: Sequence[KnownFile]) -> None:
        write_known(self._location, self.version, self._known.values())


def scan_files(
    root: str,
    workers: int,
    cache: str,
    paths: list[str] | None = None,
    report: Callable[[ScanProgress], None] = lambda progress: None,
    examine_all: ExamineAll = examine_in_threads,
) -> tuple[list[Track], list[Reject]]:
    """Tracks, sorted by key, and files that are no usable audio, by path: of all files below a folder, or of `paths`
    below it.

    Short, silent and clipped files and duplicates are tracks too: a manifest decides about these.

    Args:
        workers, examine_all: how the files are spread.
        cache: location of what an earlier scan found; written when there is something new, also when interrupted.
        report: called when it is known what is to decode, and after each file that is decoded.
    """
    config = _rejecting_nothing(root, workers)
    check_folder(root, config.patience, "input")
    found = list_files(root, config.patience) if paths is None else stamp_files(root, paths, config.patience)
    known = ScanFile(cache, result_version(config))
    results = find_or_examine(config, found, report, examine_all, known)
    placed = [place(result, config) if isinstance(result, Track) else result for result in results]
    return tracks_and_rejects([*found.unlisted, *placed])


def _rejecting_nothing(root: str, workers: int) -> ManifestConfig:
    """The settings of a manifest that rejects only files that are no audio."""
    return ManifestConfig(
        root=root,
        out=root,
        workers=workers,
        min_seconds=0.0,
        max_seconds=float("inf"),
        silence_dbfs=float("-inf"),
        max_clipped_share=1.0,
    )
