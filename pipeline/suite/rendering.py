"""MIDI messages to sound: TinySoundFont, driven message by message."""

import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import mido
import numpy as np

from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.suite.sources import SourceError, missing

LEAD_IN_SECONDS = 3.0  # notes that began before the window still sound in it
DRAIN_SAMPLES = 24_000  # longer than the fade of voices that a reset ends
VOICES = 256
DRUM_CHANNEL = 9
GAIN_DB = -12.0
BANK_SELECT = (0, 32)


class TimedMessage(NamedTuple):
    """A MIDI message at a time in seconds."""

    time: float
    message: mido.Message


class Synthesizer(Protocol):
    """The part of TinySoundFont that is used here."""

    def render(self, buffer: memoryview) -> None: ...
    def reset(self) -> None: ...
    def channel_note_on(self, channel: int, key: int, velocity: float) -> None: ...
    def channel_note_off(self, channel: int, key: int) -> None: ...
    def channel_set_preset_number(self, channel: int, number: int, drum: bool) -> None: ...
    def channel_set_pitch_wheel(self, channel: int, pitch_wheel: int) -> None: ...
    def channel_midi_control(self, channel: int, controller: int, control_value: int) -> None: ...


def render(font: Path, messages: Sequence[TimedMessage], start: float, seconds: float) -> np.ndarray:
    """The window [start, start + seconds) of a piece as float32 `[T]` at 24 kHz.

    Voices take slots in the order of their notes, and a reset empties all: the same messages give the same samples
    whatever was rendered before.

    Raises:
        SourceError: TinySoundFont or the font is not there.
    """
    synthesizer = load_font(font)
    synthesizer.reset()
    synthesizer.render(memoryview(bytearray(4 * DRAIN_SAMPLES)))
    for channel in range(16):
        synthesizer.channel_set_preset_number(channel, 0, channel == DRUM_CHANNEL)
    first = max(0.0, start - LEAD_IN_SECONDS)
    last = start + seconds
    samples = np.zeros(round((last - first) * SAMPLE_RATE), dtype=np.float32)
    position = 0
    for time, message in messages:
        if time >= last:
            break
        if time < first and message.type in ("note_on", "note_off"):
            continue
        position = _advance(synthesizer, samples, position, round((time - first) * SAMPLE_RATE))
        _send(synthesizer, message)
    _advance(synthesizer, samples, position, len(samples))
    return samples[len(samples) - round(seconds * SAMPLE_RATE) :]


def _advance(synthesizer: Synthesizer, samples: np.ndarray, position: int, target: int) -> int:
    if target <= position:
        return position
    synthesizer.render(samples[position:target].data.cast("B"))
    return target


def _send(synthesizer: Synthesizer, message: mido.Message) -> None:
    if message.type == "note_on" and message.velocity:
        synthesizer.channel_note_on(message.channel, message.note, message.velocity / 127)
    elif message.type in ("note_on", "note_off"):
        synthesizer.channel_note_off(message.channel, message.note)
    elif message.type == "program_change":
        synthesizer.channel_set_preset_number(message.channel, message.program, message.channel == DRUM_CHANNEL)
    elif message.type == "pitchwheel":
        synthesizer.channel_set_pitch_wheel(message.channel, message.pitch + 8192)
    elif message.type == "control_change" and message.control not in BANK_SELECT:
        synthesizer.channel_midi_control(message.channel, message.control, message.value)


@functools.cache
def load_font(font: Path) -> Synthesizer:
    """A soundfont in memory, mono at 24 kHz; kept for this process, since a compressed one takes long to load."""
    try:
        from tinysoundfont import _tinysoundfont as engine
    except ImportError:
        raise SourceError(missing("tinysoundfont", Path())) from None
    if not font.is_file():
        raise SourceError(f"the soundfont {font} is missing")
    synthesizer = engine.SoundFont(str(font))
    synthesizer.set_output(engine.OutputMode.Mono, SAMPLE_RATE, GAIN_DB)
    synthesizer.set_max_voices(VOICES)
    return synthesizer


def read_midi(content: bytes) -> list[TimedMessage]:
    """The messages of a MIDI file in order, at their times in seconds. Raises ValueError for what is no MIDI file."""
    try:
        file = mido.MidiFile(file=io.BytesIO(content), clip=True)
        time, messages = 0.0, []
        for message in file:
            time += message.time
            if not message.is_meta:
                messages.append(TimedMessage(time, message))
    except (EOFError, OSError, KeyError, IndexError) as error:
        raise ValueError(f"not a MIDI file that can be read: {error}") from error
    return messages


class Note(NamedTuple):
    """A note: seconds, MIDI number, velocity 1 to 127."""

    start: float
    end: float
    pitch: int
    velocity: int


def as_messages(parts: Iterable[tuple[int, int, Sequence[Note]]]) -> list[TimedMessage]:
    """(channel, program, notes) parts as messages in order; a note ends before another begins at the same time."""
    messages = []
    for channel, program, notes in parts:
        messages.append(TimedMessage(0.0, mido.Message("program_change", channel=channel, program=program)))
        for note in notes:
            on = mido.Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)
            off = mido.Message("note_off", channel=channel, note=note.pitch)
            messages += [TimedMessage(note.start, on), TimedMessage(note.end, off)]
    order = {"program_change": 0, "note_off": 1, "note_on": 2}
    return sorted(messages, key=lambda timed: (timed.time, order[timed.message.type]))


def with_programs(messages: Sequence[TimedMessage], programs: Sequence[int]) -> list[TimedMessage]:
    """The same piece with channel c on `programs[c]`, drums as they were."""
    opening = [
        TimedMessage(0.0, mido.Message("program_change", channel=channel, program=program))
        for channel, program in enumerate(programs)
        if channel != DRUM_CHANNEL
    ]
    kept = [
        timed for timed in messages if timed.message.type != "program_change" or timed.message.channel == DRUM_CHANNEL
    ]
    return [*opening, *kept]
