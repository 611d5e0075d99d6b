"""MagnaTagATune tagging (Law and others, ISMIR 2009): the 50 most frequent of 188 tags of 29-second clips.

The split is that of the folders (van den Oord and others, 2014): 0 to b train, c valid, d to f test. No song lies in
two of them, but artists do. Clips without any of the 50 tags stay in, as in MARBLE. Three MP3s are published as empty
files and are skipped. `no vocal` and `no vocals` are two classes, as are other synonyms, because it was published so.
"""

import re
from pathlib import Path

from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find, read_rows
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Split

# By frequency over all 25,863 clips.
TAGS = tuple(
    "guitar,classical,slow,techno,strings,drums,electronic,rock,fast,piano,ambient,beat,violin,vocal,synth,female,indian,opera,"
    "male,singing,vocals,no vocals,harpsichord,loud,quiet,flute,woman,male vocal,no vocal,pop,soft,sitar,solo,man,classic,choir,"
    "voice,new age,dance,male voice,female vocal,beats,harp,cello,no voice,weird,country,female voice,metal,choral".split(
        ","
    )
)
EMPTY_FILES = {"35644", "55753", "57881"}  # by clip_id: 0 bytes in the published archive
SPLIT_OF_FOLDER: dict[str, Split] = {
    **dict.fromkeys("0123456789ab", "train"), "c": "valid", **dict.fromkeys("def", "test")
}  # fmt: skip


def read_clips(root: Path) -> list[ProbeClip]:
    """Clips by `annotations_final.csv`; raises ValueError for a row whose path is in no folder from 0 to f."""
    table = find(root, "annotations_final.csv")
    clips = []
    for number, row in read_rows(table, ("clip_id", "mp3_path", *TAGS), delimiter="\t"):
        path = row["mp3_path"]
        if row["clip_id"] in EMPTY_FILES:
            continue
        if path[:1] not in SPLIT_OF_FOLDER or path[1:2] != "/":
            raise ValueError(f"{table} line {number}: mp3_path {path!r} is in no folder from 0 to f")
        # The name ends in the seconds of the song that the clip was cut from: SONG-117-146.mp3
        song = re.sub(r"-\d+-\d+\.mp3$", "", path)
        clips.append(
            ProbeClip(
                path=f"mp3/{path}",
                label=tuple(tag for tag in TAGS if row[tag] == "1"),
                split=SPLIT_OF_FOLDER[path[0]],
                track=path,
                group=song,
            )
        )
    return clips


TASKS = (
    PublishedTask(
        task=ProbeTask(
            name="magnatagatune",
            kind="multilabel",
            classes=TAGS,
            metrics=("roc_auc", "average_precision"),
            published_as="MARBLE MTT",
        ),
        folder="magnatagatune",
        page="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
        files=("annotations_final.csv", "mp3/?/*.mp3"),
        split="folders 0-b train, c valid, d-f test",
        counts=(18_706, 1_825, 5_329),
        read_clips=read_clips,
    ),
)
