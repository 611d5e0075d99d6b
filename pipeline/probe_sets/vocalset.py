"""VocalSet (Wilkins and others, ISMIR 2018): 10 vocal techniques and 20 singers.

Two layouts are read. As published: `FULL/SINGER/CONTEXT/TECHNIQUE/*.wav`, where the file's name begins with the singer.
As MARBLE v1 prepares it: chunks of 3 s in `audio/TECHNIQUE/`, and lists `train_t.txt`, `valid_t.txt`, `test_t.txt` for
technique and `_s` for singer, which are then taken as the split.

Technique: the five test singers are published. The paper says 9 singers train and 6 validate, but names none; MARBLE
draws validation at random over file numbers, so that training singers are in it. Here, in the published layout, six of
the 15 are taken by hash. Singer: no split is published but its sizes, 48:32:20 of the recordings; by hash here. Both
differ from the lists that MARBLE draws, so scores are to be compared with care.

MARBLE also cuts leading silence (VAD) and scales each chunk to mean 0 and variance 1; here neither is done.
"""

from functools import partial
from pathlib import Path

from mert_foundry.pipeline.probe_sets.published import PublishedTask, share_of_hash
from mert_foundry.pipeline.probe_sets.tables import find, read_text
from mert_foundry.pipeline.probe_sets.task import SPLITS, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.storage.folder_kinds import FolderError

TECHNIQUES = tuple("belt breathy inhaled lip_trill spoken straight trill trillo vibrato vocal_fry".split())
# The paper's other seven; their recordings count for singers only.
DYNAMICS = ("fast_forte", "fast_piano", "forte", "messa", "pp", "slow_forte", "slow_piano")
SINGERS = (*(f"f{number}" for number in range(1, 10)), *(f"m{number}" for number in range(1, 12)))
TEST_SINGERS = ("f2", "f8", "m3", "m5", "m10")
VALID_SINGERS = 6  # of the other 15
# A second copy, and songs that the paper's table does not list.
EXCLUDED = {
    "f2_scales_vibrato_a(1).wav", "caro_vibrato.wav", "dona_vibrato.wav", "row_vibrato.wav", "slow_vibrato_arps.wav"
}  # fmt: skip
TRAIN_SHARE, VALID_SHARE = 0.48, 0.32  # of recordings, for singers


def read_clips(root: Path, target: str) -> list[ProbeClip]:
    """Recordings of the published layout, or chunks of MARBLE's; `target` is `technique` or `singer`."""
    if (root / "FULL").is_dir():
        return _published_clips(root, target)
    lists = {split: find(root, f"{split}_{target[0]}.txt", "FULL") for split in SPLITS}
    return [_chunk(line, split, target) for split, path in lists.items() for line in read_text(path).split()]


def valid_singers() -> set[str]:
    """The six validation singers of the published layout."""
    others = [singer for singer in SINGERS if singer not in TEST_SINGERS]
    return set(sorted(others, key=share_of_hash)[:VALID_SINGERS])


def _published_clips(root: Path, target: str) -> list[ProbeClip]:
    kept = TECHNIQUES if target == "technique" else (*TECHNIQUES, *DYNAMICS)
    clips, heard = [], set()
    for path in sorted(root.glob("FULL/*/*/*/*.wav")):
        singer, technique = _singer_of(path.relative_to(root).parts[1]), path.parent.name
        if technique not in kept or path.name in EXCLUDED or path.name.startswith("."):
            continue
        heard.add((singer, technique))
        split = _singer_split(singer) if target == "technique" else _recording_split(path.name)
        recording = path.relative_to(root).as_posix()
        group = singer if target == "technique" else recording
        label = technique if target == "technique" else singer
        clips.append(ProbeClip(path=recording, label=label, split=split, track=recording, group=group))
    for name, wanted, there in (
        ("singers", SINGERS, {s for s, _ in heard}),
        ("techniques", kept, {t for _, t in heard}),
    ):
        if lacking := [value for value in wanted if value not in there]:
            raise FolderError(f"{root / 'FULL'} has no recording of the {name} {', '.join(lacking)}")
    return clips


def _chunk(line: str, split: Split, target: str) -> ProbeClip:
    """A line TECHNIQUE/SINGER_REST_00.wav of MARBLE's lists."""
    technique, _, name = line.partition("/")
    recording = line.rpartition("_")[0]
    label = technique if target == "technique" else name.partition("_")[0]
    return ProbeClip(path=f"audio/{line}", label=label, split=split, track=line, group=recording)


def _singer_of(folder: str) -> str:
    """f1 of female1."""
    return folder.replace("female", "f").replace("male", "m")


def _singer_split(singer: str) -> Split:
    if singer in TEST_SINGERS:
        return "test"
    return "valid" if singer in valid_singers() else "train"


def _recording_split(name: str) -> Split:
    share = share_of_hash(name)
    if share < TRAIN_SHARE:
        return "train"
    return "valid" if share < TRAIN_SHARE + VALID_SHARE else "test"


def _published(target: str, classes: tuple[str, ...], minimum: float, counts: tuple[int, int, int]) -> PublishedTask:
    return PublishedTask(
        task=ProbeTask(
            name=f"vocalset_{target}",
            kind="multiclass",
            classes=classes,
            metrics=("accuracy", "macro_accuracy"),
            clip_seconds=3,
            clip_minimum=minimum,
            published_as=f"MARBLE VocalSet{target[0].upper()}",
        ),
        folder="vocalset",
        page="https://zenodo.org/records/1193957",
        files=(f"FULL/*/*/*/*.wav or train_{target[0]}.txt",),
        split="by singer, in singers" if target == "technique" else "by recording, in percent",
        counts=counts,
        read_clips=partial(read_clips, target=target),
    )


# The remainder of a recording is a clip from 1 s on for singers (MARBLE's --keep), and never for techniques.
TASKS = (_published("technique", TECHNIQUES, 1, (9, 6, 5)), _published("singer", SINGERS, 1 / 3, (48, 32, 20)))
