"""What kind of drum is hit: samples of drum kits, cross-validated over kits."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask
from mert_foundry.pipeline.suite.augmentation import ROOM
from mert_foundry.pipeline.suite.clip import AudioPlan, FamilyPlan, Plans, Size, TaskPlan, beside
from mert_foundry.pipeline.suite.recordings import Recording
from mert_foundry.pipeline.suite.sources import Sources

PACKAGES = ("hydrogen-data", "hydrogen-drumkits", "sonic-pi-samples")
TASKS = ("drum",)
SECONDS = 1.0
LEAD_SAMPLES = 480  # of silence before the hit
FOLDS = 5
LAYERS: dict[Size, int] = {"small": 1, "full": 8}  # strengths of one drum of a kit, at most
RELATED = {"GMRockKit": "The Black Pearl 1.0", "HardElectro1": "Millo"}
KITS = "usr/share/hydrogen/data/drumkits"
SONIC_PI = "usr/share/sonic-pi/samples"
# The first that matches the lower-case name of an instrument counts; what none matches is absent, since its name says
# nothing.
NAMES = {
    "clap": r"clap|snap",
    "stick": r"stick|rim ?click|clave|wood|click",
    "snare": r"snare|\bsn_|snr",
    "kick": r"kick|bass ?drum|\bbd_|drum_bass|thump",
    "hat": r"\bhat\b|hat |hh\b|hi[- ]?hat|drum_cymbal_(closed|pedal)",
    "cymbal": r"cymbal|crash|ride|splash|china|\bbell\b",
    "tom": r"\btom\b|\btom|_tom",
    "other": r"cowbell|tambourine|maraca|shaker|conga|bongo|agogo|djembe|sangban|dununba|kenkeni|tabla|cajon|whistle|glass",  # noqa: E501
}


@dataclass(frozen=True)
class Hit:
    """A sample of a kit. drum: the instrument, whose strengths stay together."""

    kit: str
    drum: str
    label: str
    recording: Recording


@dataclass(frozen=True)
class HitRecipe:
    """The first second of a sample."""

    recording: Recording

    def render(self, sources: Sources, random: np.random.Generator) -> np.ndarray:
        lead = LEAD_SAMPLES / SAMPLE_RATE
        return np.pad(self.recording.read(sources, 0.0, SECONDS - lead), (LEAD_SAMPLES, 0))


def plan(plans: Plans) -> FamilyPlan:
    """All hits whose names tell the drum; the kits go to five folds of about the same size."""
    hits = [*hydrogen_hits(plans.sources, LAYERS[plans.size]), *sonic_pi_hits(plans.sources)]
    folds = fold_kits([hit.kit for hit in hits])
    audio, clips = [], []
    for index, hit in enumerate(hits):
        path = f"audio/drum/{index:04d}.ogg"
        audio.append(AudioPlan(path, SECONDS, HitRecipe(hit.recording), ROOM))
        clips.append(
            ProbeClip(path=beside(path), label=hit.label, fold=folds[hit.kit], track=path, group=f"kit-{hit.kit}")
        )
    task = ProbeTask(
        name="drum", kind="multiclass", classes=tuple(NAMES), metrics=("accuracy", "macro_accuracy"), folds=FOLDS
    )
    return FamilyPlan((TaskPlan(task, tuple(clips)),), tuple(audio))


def label_of(name: str) -> str | None:
    """The class that the name of an instrument tells."""
    lowered = name.lower()
    return next((label for label, pattern in NAMES.items() if re.search(pattern, lowered)), None)


def hydrogen_hits(sources: Sources, layers: int) -> Iterator[Hit]:
    """The samples of Hydrogen's kits, at most `layers` strengths of an instrument, spread evenly."""
    for package in ("hydrogen-data", "hydrogen-drumkits"):
        root = sources.path(package)
        for description in sorted((root / KITS).glob("*/drumkit.xml")):
            folder = description.parent
            for name, files in instruments(description.read_text(encoding="utf-8", errors="replace")):
                there = [file for file in files if (folder / file).is_file()]
                steps = np.unique(np.linspace(0, len(there) - 1, min(layers, len(there))).round().astype(int))
                if label := label_of(name):
                    for step in steps:
                        path = (folder / there[step]).relative_to(root).as_posix()
                        yield Hit(family(folder.name), f"{folder.name} {name}", label, Recording(package, path))


def instruments(description: str) -> Iterator[tuple[str, list[str]]]:
    """(name, files) of each instrument of a drumkit.xml."""
    root = ElementTree.fromstring(re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", description))
    for instrument in root.iter("instrument"):
        layers = [layer.findtext("filename") or "" for layer in instrument.iter("layer")]
        yield (
            instrument.findtext("name") or "",
            [file for file in layers or [instrument.findtext("filename") or ""] if file],
        )


def sonic_pi_hits(sources: Sources) -> Iterator[Hit]:
    """The drum samples of Sonic Pi, one kit."""
    root = sources.path("sonic-pi-samples")
    for path in sorted((root / SONIC_PI).glob("*.flac")):
        if re.match(r"bd|drum|sn|elec|perc|tabla", path.name) and (label := label_of(path.stem)):
            recording = Recording("sonic-pi-samples", path.relative_to(root).as_posix())
            yield Hit("sonic-pi", path.stem, label, recording)


def family(kit: str) -> str:
    """Kits that share recordings are one: those of Millo, and such as have files in common byte by byte (81 and 1)."""
    return "Millo" if kit.startswith("Millo") else RELATED.get(kit, kit)


def fold_kits(kits: list[str]) -> dict[str, int]:
    """The fold of each kit: the largest first, each into the fold that is smallest by then."""
    sizes = [0] * FOLDS
    folds = {}
    for kit in sorted(set(kits), key=lambda kit: (-kits.count(kit), kit)):
        folds[kit] = int(np.argmin(sizes))
        sizes[folds[kit]] += kits.count(kit)
    return folds
