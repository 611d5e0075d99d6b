"""Parts of a shard set's page that text does not have: examples to hear with pictures of their targets,
and loudness.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from mert_foundry.jobs.command.line import missing_package
from mert_foundry.jobs.command.text import number
from mert_foundry.jobs.inspection.blocks import histogram_plot
from mert_foundry.jobs.inspection.examples import pitch_of_bins
from mert_foundry.jobs.inspection.options import ShardOptions
from mert_foundry.jobs.inspection.view import (
    Block,
    CodePanel,
    ExamplePlayer,
    ExamplePlayers,
    HistogramPlot,
    LevelPanel,
    LevelScale,
    Note,
    Sound,
)
from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE
from mert_foundry.pipeline.inspection.example_media import (
    OUTLINE_SAMPLES,
    STEP_DECIBELS,
    deflate,
    encode_mp3,
    loudness,
    outline,
    target_levels,
)
from mert_foundry.pipeline.inspection.examples import StoredExample, find_examples, read_audio, read_example
from mert_foundry.pipeline.inspection.shard_summary import ShardSet
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.shifted_track import split_key
from mert_foundry.pipeline.shards.format import Example
from mert_foundry.pipeline.shards.statistics import ContinuousSummary, DiscreteCounts
from mert_foundry.pipeline.shards.target import TargetSpec

LOUDNESS_EXAMPLES = 60
Decode = Callable[[np.ndarray], np.ndarray]  # codes [K, F] to audio float32 [320 F]


def loudness_plot(shard_set: ShardSet, seed: int) -> HistogramPlot:
    """Histogram of the loudness of examples that a seed draws. Their audio is read."""
    levels = [
        loudness(read_audio(shard_set.folder, shard_set.index, stored))
        for stored in draw(shard_set, LOUDNESS_EXAMPLES, seed)
    ]
    heard = [level for level in levels if level is not None]
    silent = f", {len(levels) - len(heard)} silent or too short" if len(heard) < len(levels) else ""
    hint = f"{len(levels)} examples drawn by seed {seed}{silent}"
    return histogram_plot("Loudness of examples", "LUFS (ITU-R BS.1770)", "LUFS", "examples", heard, hint)


def draw(shard_set: ShardSet, count: int, seed: int) -> list[StoredExample]:
    """`count` examples that a seed draws from all records, in the order of the set."""
    shards = {entry.name: entry for entry in shard_set.index.shardlist}
    everything = [StoredExample(shards[record.name], entry) for record in shard_set.records for entry in record.members]
    chosen = random.Random(seed).sample(range(len(everything)), min(count, len(everything)))
    return [everything[number] for number in sorted(chosen)]


def chosen_examples(shard_set: ShardSet, options: ShardOptions) -> list[StoredExample]:
    """The examples that the options name, or else a seed draws. Raises ValueError for an unknown key."""
    if options.keys:
        return find_examples(shard_set.folder, shard_set.index.shardlist, options.keys)
    return draw(shard_set, options.examples, options.seed)


def player_blocks(shard_set: ShardSet, options: ShardOptions) -> list[Block]:
    """Players of the examples that the options ask for. Raises as `chosen_examples`."""
    chosen = chosen_examples(shard_set, options)
    if not chosen:
        return [Note("No example was asked for.")]
    paths = {}
    if options.manifest:
        paths = {track.key: track.path for track in load_manifest(options.manifest).tracks}
    decoders: dict[str, Decode] = {}
    notes: list[Block] = []
    for spec in shard_set.index.targets:
        if spec.teacher.get("kind") == "encodec":
            try:
                decoders[spec.name] = load_decoder(shard_set.folder, spec, options.codec)
            except (OSError, ValueError, ModuleNotFoundError) as error:
                notes.append(undecodable_note(spec.name, error))
    shares = {
        name: deflate(code_shares(partial.counts))
        for name, partial in shard_set.partials.items()
        if isinstance(partial, DiscreteCounts)
    }
    return [*notes, ExamplePlayers(len(chosen), lambda: examples(shard_set, chosen, decoders, paths), shares)]


def load_decoder(folder: str, spec: TargetSpec, weights: str | None) -> Decode:
    """The decoder of the codec that made a target.

    Raises as `CodecDecoder`, and ModuleNotFoundError without the extra.
    """
    from mert_foundry.pipeline.inspection.codec_decoding import CodecDecoder, recorded_teacher  # needs the extra label

    return CodecDecoder(spec, recorded_teacher(folder, spec, weights)).decode


def undecodable_note(name: str, error: Exception) -> Note:
    """A note that says why no sound is decoded from the codes of a target."""
    if isinstance(error, ModuleNotFoundError):
        return Note(f"There is no audio decoded from {name}: {missing_package(error)}.", warning=True)
    reason = " ".join(str(error).split())
    text = f"There is no audio decoded from {name}: {reason}. --codec names the codec where it has moved."
    return Note(text, warning=True)


def code_shares(counts: list[list[int]]) -> np.ndarray:
    """Share of frames that have each code, float32 `[codebooks, entries]`."""
    frames = np.array(counts, np.float64)
    return (frames / np.maximum(frames.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def examples(
    shard_set: ShardSet, chosen: Iterable[StoredExample], decoders: Mapping[str, Decode], paths: Mapping[str, str]
) -> Iterator[ExamplePlayer]:
    """A player for each example: its sounds, and a picture of every target. `paths` are the tracks' paths by key."""
    for stored in chosen:
        example, _ = read_example(shard_set.folder, shard_set.index, stored)
        yield ExamplePlayer(
            title=title(example.info.track, paths),
            meta=origin(example, stored),
            seconds=example.info.num_samples / SAMPLE_RATE,
            frames=example.info.num_frames,
            frame_rate=FRAME_RATE,
            outline_per_frame=HOP // OUTLINE_SAMPLES,
            sources=sounds(example, decoders),
            panels=[panel(shard_set, spec, example.targets[spec.name]) for spec in shard_set.index.targets],
        )


def title(key: str, paths: Mapping[str, str]) -> str:
    """The path of a track where it is known, with the shift of a copy; else the key, which says that too."""
    track, semitones = split_key(key)
    if track not in paths:
        return key
    return f"{paths[track]}, shifted by {semitones:+d} semitones" if semitones else paths[track]


def origin(example: Example, stored: StoredExample) -> str:
    """Key, shard, split and loudness of an example, and which part of its track it is."""
    info = example.info
    start, end = (sample / info.sample_rate for sample in (info.start_sample, info.start_sample + info.num_samples))
    level = loudness(example.audio)
    parts = [example.key, stored.shard.url, stored.shard.split]
    parts.append(f"segment {info.segment + 1} of {info.segments}, {start:.1f} to {end:.1f} s")
    return " · ".join(parts + ([f"{level:.1f} LUFS"] if level is not None else []))


def sounds(example: Example, decoders: Mapping[str, Decode]) -> list[Sound]:
    """The original sound, and the sound that each codec decodes from its codes."""
    heard = {"Original": example.audio}
    heard |= {f"From {name}": decode(example.targets[name]) for name, decode in decoders.items()}
    return [Sound(label, encode_mp3(audio), deflate(outline(audio))) for label, audio in heard.items()]


def panel(shard_set: ShardSet, spec: TargetSpec, array: np.ndarray) -> CodePanel | LevelPanel:
    """The picture of one target."""
    statistics = shard_set.index.statistics[spec.name]
    if not isinstance(statistics, ContinuousSummary):
        title = f"{spec.name}: {spec.size} × {spec.codebook_size}, a colour for each code"
        rows, columns = array.shape
        return CodePanel(spec.name, title, rows, columns, deflate(array), spec.codebook_size or 1)
    levels = target_levels(spec, array, statistics.minimum, statistics.maximum)
    text = f"{number(levels.bottom)} to {number(levels.top)}"
    if levels.decibels:
        text = f"\N{MINUS SIGN}{levels.last * STEP_DECIBELS:g} to 0 dB of the largest value of the set"
    title = f"{spec.name}: {spec.size} bins, dark to bright: {text}"
    rows, columns = levels.levels.shape
    scale = LevelScale(levels.last, levels.decibels, STEP_DECIBELS, levels.bottom, levels.top)
    return LevelPanel(spec.name, title, rows, columns, deflate(levels.levels), scale, pitch_of_bins(spec))
