"""The kinds of folders that commands write and read, and the files by which a kind is recognised."""

from dataclasses import dataclass

from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.ownership import find_tar_fault


class FolderError(ValueError):
    """A folder of the wrong kind for what the user asked for: bad usage."""


@dataclass(frozen=True)
class FolderKind:
    """What a folder can be.

    name: in words. maker: the command that makes one; empty for what no command makes. markers: sets of names, of which
    one is there as a whole; the very first name is what a reader of such a folder reads first.
    """

    name: str
    maker: str
    markers: tuple[tuple[str, ...], ...]

    @property
    def marker(self) -> str:
        """What a reader of such a folder reads first."""
        return self.markers[0][0]

    def __str__(self) -> str:
        return f"a {self.name} (made by {self.maker})" if self.maker else f"a {self.name}"


RECORD_SUMS = ".records"  # in a shard folder: what the records of its shards say, many shards a document
SHARDS = FolderKind("shard folder", "mert label", (("index.json",), (RECORD_SUMS,)))  # or a tar of ours
MANIFEST = FolderKind("manifest folder", "mert manifest", (("manifest.yaml",), ("manifest.jsonl", "rejected.jsonl")))
RUN = FolderKind("run folder", "mert pretrain", (("metrics.jsonl",), ("checkpoints",)))
CHECKPOINT = FolderKind("checkpoint", "mert pretrain", (("checksums.json",),))
FEATURES = FolderKind("feature store", "mert extract", (("zarr.json",),))
MODEL = FolderKind(
    "model folder",
    "mert export or mert import",
    (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin")),
)
CODEC = FolderKind("codec folder", "mert codec", (("codec.yaml", "codec.safetensors"),))
KMEANS = FolderKind("k-means folder", "mert fit", (("kmeans.yaml", "centroids.safetensors"),))
MEL_RVQ = FolderKind("Mel-RVQ folder", "mert fit", (("mel_rvq.yaml", "mel_rvq.safetensors"),))
ENCODER_CODES = FolderKind("encoder codes folder", "mert fit", (("encoder_codes.yaml", "encoder_codes.safetensors"),))
TOKENIZER = FolderKind("tokenizer folder", "mert tokenizer", (("tokenizer.yaml", "tokenizer.json"),))
PROBE = FolderKind("probe folder", "mert probe", (("report.json", "results"),))
SUITE = FolderKind("suite folder", "mert suite", (("suite.yaml",),))
AUDIO = FolderKind("folder of audio", "", ())
KINDS = (
    SHARDS,
    MANIFEST,
    RUN,
    CHECKPOINT,
    FEATURES,
    MODEL,
    CODEC,
    KMEANS,
    MEL_RVQ,
    ENCODER_CODES,
    TOKENIZER,
    PROBE,
    SUITE,
)


def find_kind(location: str, *wanted: FolderKind) -> tuple[FolderKind, str] | None:
    """The kind of a folder, and the names that show it; None when there are no such names, or no folder.

    A folder may be of several kinds at once: one of `wanted` comes before all others.
    """
    for kind in (*wanted, *(kind for kind in KINDS if kind not in wanted)):
        if marker := _find_marker(location, kind):
            return kind, marker
    return None


def check_input(location: str, *kinds: FolderKind) -> FolderKind | None:
    """Which of `kinds` a folder to read is; None for a folder of no known kind, whose reader then says what is missing.

    Raises:
        FolderError: it is of another kind.
    """
    found = find_kind(location, *kinds)
    if found and found[0] not in kinds:
        needed = " or ".join(map(str, kinds))
        raise FolderError(f"{location} is a {found[0].name} (it has {found[1]}); {needed} is needed")
    return found and found[0]


def explain_missing(location: str, kind: FolderKind) -> FolderError | FileNotFoundError:
    """The error to raise when the marker of a folder to read is not there: why that is, another kind or no folder at
    all.
    """
    try:
        check_input(location, kind)
    except FolderError as error:
        return error
    if not files.exists(location):
        return FileNotFoundError(f"{location}: there is no such folder; {kind} is needed")
    return FileNotFoundError(f"{files.join(location, kind.marker)} is not there, {kind.maker} writes it last")


def check_output(location: str, kind: FolderKind) -> None:
    """Check a folder that a command will write, new or begun; it may hold files that belong to no kind.

    Raises:
        FolderError: it is of another kind.
    """
    found = find_kind(location, kind)
    if found and found[0] is not kind:
        raise FolderError(
            f"out {location} is a {found[0].name} (it has {found[1]}); a {kind.name} goes into another folder"
        )


def _find_marker(location: str, kind: FolderKind) -> str:
    for names in kind.markers:
        if all(files.exists(files.join(location, name)) for name in names):
            return " and ".join(names)
    return _find_own_tar(location) if kind is SHARDS else ""


def _find_own_tar(location: str) -> str:
    """The first tar of a folder when it is `mert label`'s: what an unfinished labelling leaves."""
    name = next((name for name in files.list_names(location) if name.endswith(".tar")), "")
    return name if name and not find_tar_fault(files.join(location, name)) else ""
