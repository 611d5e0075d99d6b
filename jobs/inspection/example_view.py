"""The examples on the page of a shard set: players of the original and of its codes, and pictures of every target."""

import json
import sys
from argparse import Namespace
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mert_foundry.jobs.command.text import number
from mert_foundry.jobs.inspection.report_page import MOST_BYTES, ReportPage, Section, pitch_axis
from mert_foundry.pipeline.frames import FRAME_RATE, HOP, SAMPLE_RATE
from mert_foundry.pipeline.inspection.codec_decoding import CodecDecoder, decodable, recorded_teacher
from mert_foundry.pipeline.inspection.example_media import (
    OUTLINE_SAMPLES,
    STEP_DECIBELS,
    deflate,
    encode_mp3,
    loudness,
    outline,
    target_levels,
)
from mert_foundry.pipeline.inspection.examples import Place, read_example
from mert_foundry.pipeline.inspection.shard_summary import ShardSet
from mert_foundry.pipeline.shards.format import Example
from mert_foundry.pipeline.shards.target import TargetSpec

PAGE_ROOM = 300_000  # bytes for template, tables and plots


def add_examples(
    page: ReportPage, shard_set: ShardSet, places: list[Place], options: Namespace, paths: Mapping[str, str]
) -> None:
    """Players and pictures, as many as the page has room for."""
    section = page.section("Examples")
    if not places:
        section.note("No example was asked for.")
        return
    decoders = load_decoders(shard_set, options.codec, section)
    page.data["shares"] = {
        name: base64(deflate(code_shares(partial.counts)))
        for name, partial in shard_set.partials.items()
        if partial.kind == "discrete"
    }
    shown: list[dict[str, Any]] = []
    room = MOST_BYTES - PAGE_ROOM - len(json.dumps(page.data))
    for described in described_examples(shard_set, places, decoders, paths):
        size = len(json.dumps(described))
        if size > room:
            limit = f"{MOST_BYTES / 1e6:g} MB"
            text = (
                f"{len(shown)} of {len(places)} examples are shown: the next would make the page larger than {limit}."
            )
            section.note(text)
            print(text, file=sys.stderr)
            break
        room -= size
        shown.append(described)
    page.examples(section, shown)


def load_decoders(shard_set: ShardSet, weights: str | None, section: Section) -> dict[str, CodecDecoder]:
    """A decoder for each target of a codec; a codec that cannot be had is left out, and the page and stderr say so."""
    decoders = {}
    for spec in decodable(shard_set.index.targets):
        try:
            decoders[spec.name] = CodecDecoder(spec, recorded_teacher(shard_set.folder, spec, weights))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            text = f"Audio decoded from {spec.name} is left out: {reason}. --codec names the codec where it has moved."
            section.note(text)
            print(text, file=sys.stderr)
    return decoders


def code_shares(counts: list[list[int]]) -> np.ndarray:
    """Share of frames that chose each entry, float32 `[codebooks, entries]`."""
    frames = np.array(counts, np.float64)
    return (frames / np.maximum(frames.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def described_examples(
    shard_set: ShardSet, places: Iterable[Place], decoders: Mapping[str, CodecDecoder], paths: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Each example as examples.js wants it."""
    for place in places:
        example, _ = read_example(shard_set.folder, shard_set.index, place)
        yield {
            "title": paths.get(example.info.track, example.info.track),
            "meta": describe(example, place),
            "seconds": example.info.num_samples / SAMPLE_RATE,
            "frames": example.info.num_frames,
            "frameRate": FRAME_RATE,
            "outlinePerFrame": HOP // OUTLINE_SAMPLES,
            "sources": sources(example, decoders),
            "panels": [panel(shard_set, spec, example.targets[spec.name]) for spec in shard_set.index.targets],
        }


def describe(example: Example, place: Place) -> str:
    """Key, shard, split, and which part of the track it is."""
    info = example.info
    start, end = (sample / info.sample_rate for sample in (info.start_sample, info.start_sample + info.num_samples))
    level = loudness(example.audio)
    parts = [example.key, place.shard.url, place.shard.split]
    parts.append(f"segment {info.segment + 1} of {info.segments}, {start:.1f} to {end:.1f} s")
    return " · ".join(parts + ([f"{level:.1f} LUFS"] if level is not None else []))


def sources(example: Example, decoders: Mapping[str, CodecDecoder]) -> list[dict[str, str]]:
    """The original, and what each codec makes of its codes."""
    sounds = {"Original": example.audio}
    for name, decoder in decoders.items():
        sounds[f"From {name}"] = decoder.decode(example.targets[name])
    return [
        {
            "label": label,
            "type": "audio/mpeg",
            "audio": base64(encode_mp3(audio)),
            "outline": base64(deflate(outline(audio))),
        }
        for label, audio in sounds.items()
    ]


def panel(shard_set: ShardSet, spec: TargetSpec, array: np.ndarray) -> dict[str, Any]:
    """One target's picture as heatmaps.js wants it."""
    if spec.kind == "discrete":
        return {
            "kind": "codes",
            "name": spec.name,
            "title": f"{spec.name}: {spec.size} × {spec.codebook_size}, a colour for each code",
            "rows": array.shape[0],
            "columns": array.shape[1],
            "entries": spec.codebook_size,
            "data": base64(deflate(array)),
        }
    statistics = shard_set.index.statistics[spec.name]
    levels = target_levels(spec, array, statistics.minimum, statistics.maximum)
    if levels.decibels:
        scale = f"\N{MINUS SIGN}{levels.last * STEP_DECIBELS:g} to 0 dB of the largest value of the set"
    else:
        scale = f"{number(levels.bottom)} to {number(levels.top)}"
    return {
        "kind": "levels",
        "name": spec.name,
        "title": f"{spec.name}: {spec.size} bins, dark to bright: {scale}",
        "rows": levels.levels.shape[0],
        "columns": levels.levels.shape[1],
        "last": levels.last,
        "decibels": levels.decibels,
        "step": STEP_DECIBELS,
        "bottom": levels.bottom,
        "top": levels.top,
        "pitch": pitch_axis(spec),
        "data": base64(deflate(levels.levels)),
    }


def base64(data: bytes) -> str:
    """ASCII form of bytes."""
    return b64encode(data).decode()
