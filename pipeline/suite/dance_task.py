"""The dance a tune is for: jig, reel, hornpipe, slip jig or strathspey, all at the same rates of notes."""

from mert_foundry.pipeline.probe_sets.task import SPLITS, ProbeClip, ProbeTask, Split
from mert_foundry.pipeline.suite.augmentation import ROOM
from mert_foundry.pipeline.suite.clip import (
    AudioPlan,
    FamilyPlan,
    Plans,
    Size,
    TaskPlan,
    beside,
    shuffled,
    split_groups,
)
from mert_foundry.pipeline.suite.fonts import FONT_PACKAGES, choose_font
from mert_foundry.pipeline.suite.scores import ScoreRecipe, Tune, choose_programs, read_tunes

PACKAGES = (*FONT_PACKAGES, "music21", "tinysoundfont")
TASKS = ("dance",)
SECONDS = 10.0
BOOKS = ("oneills1850", "ryansMammoth")
CLIPS_A_CLASS: dict[Size, dict[Split, int]] = {
    "small": {"train": 22, "valid": 4, "test": 9},
    "full": {"train": 168, "valid": 24, "test": 48},
}
RATE = (4.0, 7.0)  # notes per second: drawn alike for all dances, so that the tempo does not tell them
DANCES = {
    "jig": "jig",
    "double jig": "jig",
    "reel": "reel",
    "hornpipe": "hornpipe",
    "slip jig": "slip_jig",
    "slipjig": "slip_jig",
    "strathspey": "strathspey",
}
CLASSES = ("jig", "reel", "hornpipe", "slip_jig", "strathspey")


def plan(plans: Plans) -> FamilyPlan:
    """Every dance equally often; a melody that is in the books twice is in one split."""
    audio: list[AudioPlan] = []
    clips: list[ProbeClip] = []
    for dance, tunes in tunes_by_dance().items():
        splits = split_groups([tune.group for tune in tunes], plans.random("dance", dance))
        for split in SPLITS:
            random = plans.random("dance", dance, split)
            own = shuffled([tune for tune in tunes if splits[tune.group] == split], random)
            for index in range(CLIPS_A_CLASS[plans.size][split]):
                tune = own[index % len(own)]
                path = f"audio/dance/{split}-{dance}-{index:03d}.ogg"
                programs = choose_programs(random, 1)
                recipe = ScoreRecipe(
                    font=choose_font(random, split, "", programs),
                    source=tune.text,
                    transpose=int(random.integers(-5, 6)),
                    programs=programs,
                    rate=random.uniform(*RATE),
                    seconds=SECONDS,
                )
                audio.append(AudioPlan(path, SECONDS, recipe, ROOM))
                clips.append(
                    ProbeClip(path=beside(path), label=dance, split=split, track=path, group=f"tune-{tune.group}")
                )
    task = ProbeTask(name="dance", kind="multiclass", classes=CLASSES, metrics=("accuracy", "macro_accuracy"))
    return FamilyPlan((TaskPlan(task, tuple(clips)),), tuple(audio))


def tunes_by_dance() -> dict[str, list[Tune]]:
    """Tunes whose book names one of the dances; of those that begin alike under two names, the first name counts."""
    found: dict[str, list[Tune]] = {dance: [] for dance in CLASSES}
    names: dict[str, str] = {}
    for tune in read_tunes(BOOKS):
        dance = DANCES.get(tune.rhythm)
        if dance and names.setdefault(tune.group, dance) == dance:
            found[dance].append(tune)
    return found
