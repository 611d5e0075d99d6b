"""Which game a recording is from: real music, every clip through a codec."""

from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.probe_sets.task import SPLITS, ProbeClip, ProbeTask
from mert_foundry.pipeline.suite.augmentation import REAL
from mert_foundry.pipeline.suite.clip import AudioPlan, FamilyPlan, Plans, Size, TaskPlan, beside, split_groups
from mert_foundry.pipeline.suite.recordings import Recording, find_recordings
from mert_foundry.pipeline.suite.sources import Sources

TASKS = ("collection",)
SECONDS = 10.0
SHORTEST_SECONDS = 40.0  # of a track, so that jingles are no music
TRACKS: dict[Size, int] = {"small": 12, "full": 64}  # of a game, at most
CLIPS_A_TRACK: dict[Size, int] = {"small": 1, "full": 3}
# By class: the package, and where its music lies.
GAMES = {
    "wesnoth": ("wesnoth-1.16-music", "usr/share/games/wesnoth/1.16/data/core/music/*.ogg"),
    "ufoai": ("ufoai-music", "usr/share/games/ufoai/base/0music.pk3"),
    "planetblupi": ("planetblupi-music-ogg", "usr/share/planetblupi/music/*.ogg"),
    "singularity": ("singularity-music", "usr/share/games/singularity/music/*.ogg"),
    "hyperrogue": ("hyperrogue-music", "usr/share/hyperrogue/music/*.ogg"),
    "fillets": ("fillets-ng-data", "usr/share/games/fillets-ng/music/*.ogg"),
    "pushover": ("pushover-data", "usr/share/pushover/themes/*.ogg"),
}
PACKAGES = tuple(package for package, _ in GAMES.values())


@dataclass(frozen=True)
class RecordingRecipe:
    """A window of a recording."""

    recording: Recording
    start: float

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        return self.recording.read(sources, self.start, SECONDS)


def plan(plans: Plans) -> FamilyPlan:
    """Tracks split within each game; the clips of a track are averaged before they are scored."""
    audio, clips = [], []
    for game, (package, pattern) in GAMES.items():
        random = plans.random("collection", game)
        lengths = {
            recording: recording.seconds(plans.sources)
            for recording in find_recordings(plans.sources, package, pattern)
        }
        tracks = [recording for recording, length in lengths.items() if length >= SHORTEST_SECONDS]
        chosen = [tracks[index] for index in sorted(random.permutation(len(tracks))[: TRACKS[plans.size]])]
        names = {recording: f"{game}-{index:02d}" for index, recording in enumerate(chosen)}
        splits = split_groups(list(names.values()), random)
        for recording, name in names.items():
            for number in range(CLIPS_A_TRACK[plans.size]):
                start = round(random.uniform(5.0, lengths[recording] - SECONDS - 5.0), 3)
                path = f"audio/collection/{name}-{number}.ogg"
                audio.append(AudioPlan(path, SECONDS, RecordingRecipe(recording, start), REAL))
                clips.append(ProbeClip(path=beside(path), label=game, split=splits[name], track=name, group=name))
    clips.sort(key=lambda clip: SPLITS.index(clip.split or "train"))
    task = ProbeTask(name="collection", kind="multiclass", classes=tuple(GAMES), metrics=("accuracy", "macro_accuracy"))
    return FamilyPlan((TaskPlan(task, tuple(clips)),), tuple(audio))
