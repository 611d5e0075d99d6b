"""MTG-Jamendo tagging (Bogdanov and others, 2019): instruments, moods, genres and the top 50 tags of 55,525 full
tracks.

Split 0 of the five published ones, as in MARBLE; no artist lies in two of its splits. A few tags are in none of the
split lists, which is why there are 40, 56 and 87 classes where papers say 41, 59 and 95.
"""

from functools import partial
from pathlib import Path

from mert_foundry.pipeline.probe_sets.published import PublishedTask
from mert_foundry.pipeline.probe_sets.tables import find, find_clone, read_text
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask, Split

INSTRUMENTS = tuple(f"instrument---{name}" for name in """
    accordion acousticbassguitar acousticguitar bass beat bell bongo brass cello clarinet classicalguitar computer doublebass
    drummachine drums electricguitar electricpiano flute guitar harmonica harp horn keyboard oboe orchestra organ pad
    percussion piano pipeorgan rhodes sampler saxophone strings synthesizer trombone trumpet viola violin voice
""".split())  # fmt: skip
MOODS = tuple(f"mood/theme---{name}" for name in """
    action adventure advertising background ballad calm children christmas commercial cool corporate dark deep documentary
    drama dramatic dream emotional energetic epic fast film fun funny game groovy happy heavy holiday hopeful inspiring love
    meditative melancholic melodic motivational movie nature party positive powerful relaxing retro romantic sad sexy slow
    soft soundscape space sport summer trailer travel upbeat uplifting
""".split())  # fmt: skip
GENRES = tuple(f"genre---{name}" for name in """
    60s 70s 80s 90s acidjazz alternative alternativerock ambient atmospheric blues bluesrock bossanova breakbeat celtic
    chanson chillout choir classical classicrock club contemporary country dance darkambient darkwave deephouse disco
    downtempo drumnbass dub dubstep easylistening edm electronic electronica electropop ethno eurodance experimental folk
    funk fusion groove grunge hard hardrock hiphop house idm improvisation indie industrial instrumentalpop
    instrumentalrock jazz jazzfusion latin lounge medieval metal minimal newage newwave orchestral pop popfolk poprock
    postrock progressive psychedelic punkrock rap reggae rnb rock rocknroll singersongwriter soul soundtrack swing symphonic
    synthpop techno trance triphop world worldfusion
""".split())  # fmt: skip
TOP_50 = tuple(
    [f"genre---{name}" for name in """
    alternative ambient atmospheric chillout classical dance downtempo easylistening electronic experimental folk funk hiphop
    house indie instrumentalpop jazz lounge metal newage orchestral pop popfolk poprock reggae rock soundtrack techno trance
    triphop world
""".split()]
    + [f"instrument---{name}" for name in """
    acousticguitar bass computer drummachine drums electricguitar electricpiano guitar keyboard piano strings synthesizer
    violin voice
""".split()]
    + [f"mood/theme---{name}" for name in "emotional energetic film happy relaxing".split()]
)  # fmt: skip
FILE_OF_SPLIT: dict[Split, str] = {"train": "train", "valid": "validation", "test": "test"}
CLONE, LISTS = "mtg-jamendo-dataset", "data/splits/split-0"
COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]


def read_clips(root: Path, subset: str) -> list[ProbeClip]:
    """Tracks of `autotagging_SUBSET-SPLIT.tsv`; audio is `audio-low/41/241.low.mp3`, or `audio/41/241.mp3` without the
    first.

    Raises ValueError for a line that is not of the published form.
    """
    lists = find(find_clone(root, CLONE), LISTS)
    is_low = find(root, "audio-low", "audio").name == "audio-low"
    clips = []
    for split, name in FILE_OF_SPLIT.items():
        table = find(lists, f"autotagging_{subset}-{name}.tsv")
        header, *lines = read_text(table).splitlines()
        if header.split("\t") != COLUMNS:
            raise ValueError(f"{table}: columns {header!r}, not {' '.join(COLUMNS)}")
        for number, line in enumerate(lines, start=2):
            track, artist, _, path, seconds, *tags = line.split("\t") if line.count("\t") > 4 else [""] * 5
            try:
                clips.append(
                    ProbeClip(
                        path=f"audio-low/{path.removesuffix('.mp3')}.low.mp3" if is_low else f"audio/{path}",
                        label=tuple(tags),
                        split=split,
                        track=track,
                        group=artist,
                        end=float(seconds),
                    )
                )
            except ValueError as error:
                raise ValueError(f"{table} line {number}: not {' '.join(COLUMNS)}, but {line[:80]!r}") from error
    return clips


def _published(
    name: str, classes: tuple[str, ...], subset: str, counts: tuple[int, int, int], twin: str
) -> PublishedTask:
    return PublishedTask(
        task=ProbeTask(
            name=name,
            kind="multilabel",
            classes=classes,
            metrics=("roc_auc", "average_precision"),
            clip_seconds=30,
            published_as=f"MARBLE {twin}",
        ),
        folder="mtg_jamendo",
        page="https://github.com/MTG/mtg-jamendo-dataset (raw_30s/audio-low)",
        files=(f"{CLONE}*/{LISTS}/autotagging_{subset}-train.tsv", "audio-low or audio"),
        split="split 0",
        counts=counts,
        read_clips=partial(read_clips, subset=subset),
    )


TASKS = (
    _published("mtg_instrument", INSTRUMENTS, "instrument", (14_395, 5_466, 5_115), "MTGInstrument"),
    _published("mtg_mood", MOODS, "moodtheme", (9_949, 3_802, 4_231), "MTGMood"),
    _published("mtg_genre", GENRES, "genre", (32_572, 11_043, 11_479), "MTGGenre"),
    _published("mtg_top50", TOP_50, "top50tags", (32_136, 10_888, 11_356), "MTGTop50"),
)
