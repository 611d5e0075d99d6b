"""The probing suite: what is rendered, labelled, split and written, on a soundfont and packages made here; nothing is
fetched.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pyloudnorm
import pytest
import soundfile
import yaml
from audio_files import noise, tone, write_audio
from hypothesis import given
from hypothesis import strategies as st

from mert_foundry.jobs import suite
from mert_foundry.jobs.command.line import run
from mert_foundry.pipeline.frames import SAMPLE_RATE
from mert_foundry.pipeline.probe_sets.task import ProbeClip, ProbeTask
from mert_foundry.pipeline.suite import accompaniment, dance_task, drum_task, guitar_task, note_tasks, scores, tags_task
from mert_foundry.pipeline.suite.augmentation import CODECS, Finish, add_noise, finish, pass_codec
from mert_foundry.pipeline.suite.clip import FamilyPlan, Plans, TaskPlan, generator, make_audio, split_groups
from mert_foundry.pipeline.suite.fonts import FONTS, FONTS_OF
from mert_foundry.pipeline.suite.rendering import Note, TimedMessage, as_messages, read_midi, render, with_programs
from mert_foundry.pipeline.suite.sources import STAMP, SourceError, Sources
from mert_foundry.pipeline.suite.write import MakeAudio, begin, missing_audio, read_digest, read_suite, write_tasks

PERIOD = 100  # samples of the tiny font's sine, 440 Hz at 44 kHz


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def soundfont(path: Path) -> Path:
    """A SoundFont 2.01 file (sfspec24.pdf, section 7): 128 programs and a drum kit, all one looped sine on key 69."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sine = (12_000 * np.sin(2 * np.pi * np.arange(50 * PERIOD) / PERIOD)).astype("<i2")
    banks = [(program, 0) for program in range(128)] + [(0, 128), (0, 0)]
    presets = b"".join(
        struct.pack("<20sHHHIII", b"sine", program, bank, index, 0, 0, 0) for index, (program, bank) in enumerate(banks)
    )
    bags = b"".join(struct.pack("<HH", index, 0) for index in range(len(banks)))
    to_instrument = struct.pack("<HH", 41, 0) * (len(banks) - 1) + struct.pack("<HH", 0, 0)
    instrument = struct.pack("<20sH", b"sine", 0) + struct.pack("<20sH", b"EOI", 1)
    zones = struct.pack("<HHHH", 54, 1, 53, 0) + struct.pack("<HH", 0, 0)  # looped; the sample
    header = struct.pack("<20sIIIIIBbHH", b"sine", 0, len(sine), 10 * PERIOD, 40 * PERIOD, 44_000, 69, 0, 0, 1)
    tables = [
        (b"phdr", presets), (b"pbag", bags), (b"pmod", bytes(10)), (b"pgen", to_instrument), (b"inst", instrument),
        (b"ibag", struct.pack("<HHHH", 0, 0, 2, 0)), (b"imod", bytes(10)), (b"igen", zones),
        (b"shdr", header + struct.pack("<20s26x", b"EOS")),
    ]  # fmt: skip
    information = chunk(b"ifil", struct.pack("<HH", 2, 1)) + chunk(b"INAM", b"tiny")
    samples = chunk(b"smpl", sine.tobytes() + bytes(92))
    lists = [b"INFO" + information, b"sdta" + samples, b"pdta" + b"".join(chunk(*table) for table in tables)]
    path.write_bytes(chunk(b"RIFF", b"sfbk" + b"".join(chunk(b"LIST", content) for content in lists)))
    return path


def package(root: Path, name: str) -> Path:
    """A package as if it had been unpacked."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).write_text(json.dumps({"version": "1", "sha256": "0" * 64, "licence": "made here"}))
    return folder


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    pytest.importorskip("tinysoundfont")
    root = tmp_path_factory.mktemp("sources")
    for name, path in FONTS.values():
        soundfont(package(root, name) / path)
    return Sources(root)


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    """Packages of drums: six kits of three drums, and Sonic Pi's."""
    root = tmp_path / "sources"
    for index in range(6):
        kit = package(root, "hydrogen-drumkits" if index else "hydrogen-data") / drum_task.KITS / f"kit{index}"
        drums = []
        for number, name in enumerate(("Kick 1", "Snare Rimshot", "Hat Closed")):
            write_audio(kit / f"{number}.wav", noise(0.5, 44_100, seed=10 * index + number), 44_100)
            drums.append(
                f"<instrument><name>{name}</name><layer><filename>{number}.wav</filename></layer></instrument>"
            )
        (kit / "drumkit.xml").write_text(f'<drumkit_info xmlns="http://x.org/d">{"".join(drums)}</drumkit_info>')
    sonic = package(root, "sonic-pi-samples") / drum_task.SONIC_PI
    write_audio(sonic / "bd_haus.flac", tone(60, 0.3, 44_100), 44_100)
    write_audio(sonic / "loop_amen.flac", noise(1, 44_100), 44_100)
    return root


def peak_frequency(audio: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(audio)


def digest_of(plan: FamilyPlan, plans: Plans, count: int) -> list[bytes]:
    return [make_audio(audio, plans.sources, plans.seed).tobytes() for audio in plan.audio[:count]]


@pytest.mark.parametrize("pitch", [57, 69, 81])
def test_a_note_sounds_at_its_pitch_and_at_its_time(fonts: Sources, pitch: int):
    font = fonts.path(*FONTS["fluid"])
    audio = render(font, as_messages([(0, 5, [Note(0.5, 1.4, pitch, 100)])]), 0.0, 2.0)
    assert peak_frequency(audio[14_400:33_600]) == pytest.approx(440 * 2 ** ((pitch - 69) / 12), abs=1.5)
    assert np.abs(audio[: SAMPLE_RATE // 2]).max() == 0 < np.abs(audio[SAMPLE_RATE // 2 :][:2400]).max()


def test_what_was_rendered_before_leaves_no_trace(fonts: Sources):
    font = fonts.path(*FONTS["timgm"])
    first = as_messages([(0, 0, [Note(0.0, 1.0, 60, 90)]), (9, 0, [Note(0.3, 0.4, 38, 100)])])
    alone = render(font, first, 0.0, 1.0)
    render(font, as_messages([(0, 40, [Note(0.0, 9.0, pitch, 127) for pitch in range(40, 90)])]), 0.0, 1.0)
    assert np.array_equal(alone, render(font, first, 0.0, 1.0))


def test_a_window_is_what_the_whole_piece_holds_there(fonts: Sources):
    font = fonts.path(*FONTS["fluid"])
    piece = as_messages([(0, 0, [Note(start, start + 0.4, 60 + start, 90) for start in range(6)])])
    whole, window = render(font, piece, 0.0, 6.0), render(font, piece, 2.0, 3.0)
    assert np.abs(whole[2 * SAMPLE_RATE : 5 * SAMPLE_RATE] - window).max() < 0.02 * np.abs(whole).max()


def test_the_same_seed_gives_the_same_samples_and_another_one_others(fonts: Sources):
    one, other = (Plans("small", seed, fonts) for seed in (0, 1))
    plan = note_tasks.plan(one)
    assert digest_of(plan, one, 4) == digest_of(note_tasks.plan(one), one, 4)
    assert plan.tasks == note_tasks.plan(one).tasks != note_tasks.plan(other).tasks
    assert digest_of(plan, one, 2) != digest_of(note_tasks.plan(other), other, 2)


def test_no_program_and_no_font_is_on_both_sides(fonts: Sources):
    plan = note_tasks.plan(Plans("small", 3, fonts))
    recipes = {f"../{audio.path}": audio.recipe for audio in plan.audio}
    used: dict[str, tuple[set, set]] = {split: (set(), set()) for split in ("train", "valid", "test")}
    for clip in plan.tasks[0].clips:
        recipe = recipes[clip.path]
        used[clip.split][0].add(recipe.program)
        used[clip.split][1].add(recipe.font)
        assert clip.label == str(recipe.note.pitch)
        assert (clip.condition == "opl3") == (recipe.font == "opl3")
    (train, fonts_of_train), (valid, _), (test, fonts_of_test) = used.values()
    assert not train & valid and not train & test and not valid & test
    assert fonts_of_train == set(FONTS_OF["train"]) and fonts_of_test == {"timgm", "opl3"}
    for split, many in (("train", 8), ("valid", 2), ("test", 4)):
        labels = [clip.label for clip in plan.tasks[1].clips if clip.split == split]
        assert {labels.count(pitch) for pitch in plan.tasks[1].task.classes} == {many}


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_moves_nothing(codec: tuple[str, str, float]):
    audio = np.convolve(noise(1.5, seed=4), np.hanning(9) / 4, mode="same").astype(np.float32)
    decoded = pass_codec(audio, *codec)
    assert len(decoded) == len(audio)
    against = [float(np.dot(audio[100:-100], np.roll(decoded, shift)[100:-100])) for shift in range(-60, 61)]
    assert int(np.argmax(against)) == 60
    assert against[60] > 0.9 * float(np.dot(audio[100:-100], audio[100:-100]))


def test_the_level_says_nothing_of_how_loud_a_clip_was():
    levels = []
    for index, gain in enumerate([0.001, 0.03, 1.0] * 8):
        audio = finish(gain * noise(2, seed=index), Finish(codec_share=0), generator(0, index))
        levels.append(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(audio))
    assert min(levels) > -26.2 and max(levels) < -19.8 and np.std(levels) > 1
    assert abs(np.corrcoef(levels, [0.001, 0.03, 1.0] * 8)[0, 1]) < 0.5


@given(ratio=st.floats(-5, 40), seed=st.integers(0, 99))
def test_noise_has_the_ratio_that_was_asked_for(ratio: float, seed: int):
    audio = tone(440, 0.5)
    added = add_noise(audio, ratio, generator(seed)) - audio
    assert 10 * np.log10(np.mean(audio**2) / np.mean(added**2)) == pytest.approx(ratio, abs=0.2)


def test_a_silent_clip_is_refused():
    with pytest.raises(ValueError, match="silent"):
        finish(np.zeros(24_000, dtype=np.float32), Finish(), generator(0))


TUNE = 'X:1\nT:A tune\nR:Double Jig\nM:6/8\nL:1/8\nK:G\nGAB "D"def|{a}g2d BAG|!trill!c2A FDE|[M:6/8]GBd g3|G3 G,3|]\n'


def test_a_tune_says_its_key_rhythm_and_contour():
    tune = scores.parse_tune(TUNE)
    assert tune.key == (7, "major") and tune.rhythm == "double jig" and dance_task.DANCES[tune.rhythm] == "jig"
    assert scores.parse_tune(TUNE.replace("K:G", "K:Gm")).key == (7, "minor")
    assert scores.parse_tune(TUNE.replace("K:G", "K:Ador")).key is None  # another mode
    assert scores.parse_tune(TUNE.replace("K:G", "K:D")).key is None  # does not end on its tonic
    assert scores.parse_tune("X:1\nK:G\nGAB|") is None


def test_a_transposed_tune_is_the_same_piece_and_a_varied_one_is_not():
    step_up = str.maketrans("GABcdefgFED", "ABcdefgaGFE")
    header, body = TUNE.split("K:G\n")
    body = body.replace("[M:6/8]", "").replace("!trill!", "").replace('"D"', "").replace("{a}", "")
    group = scores.parse_tune(TUNE).group
    assert scores.parse_tune(f"{header}K:A\n{body.translate(step_up)}").group == group
    assert scores.parse_tune(TUNE.replace("GAB", "GBA")).group != group


def test_a_tune_is_played_at_its_rate_and_in_its_key(fonts: Sources):
    pytest.importorskip("music21")
    parts = scores.written_parts(scores.parse_score(TUNE))
    assert [note.pitch for note in parts[0][:6]] == [67, 69, 71, 74, 76, 78]
    recipe = scores.ScoreRecipe("fluid", TUNE, 2, (0,), rate=2.0, seconds=1.0)
    audio = recipe.render(fonts, generator(0))
    assert len(audio) == SAMPLE_RATE and np.abs(audio).max() > 0


def test_chords_and_beats_of_a_window_are_those_of_the_piece():
    groove = accompaniment.Groove("swing", "swing", "Swing", 4)
    for seed in range(20):
        piece = accompaniment.draw_piece(groove, 14.0, generator(seed))
        start, beat = 2.345, 60 / piece.tempo
        segments = piece.segments(start, 10.0)
        assert segments[0].start == 0 and segments[-1].end == 10
        assert [first.end for first in segments[:-1]] == [second.start for second in segments[1:]]
        assert {segment.label for segment in segments} <= set(accompaniment.CHORD_CLASSES)
        beats = piece.beats(start, 10.0)
        assert 60 <= piece.tempo <= 200 and beats.tempo == piece.tempo
        assert np.allclose(np.diff(beats.times), beat, atol=2e-5) and 0 <= beats.times[0] < beat
        assert np.allclose(np.mod(np.array(beats.times) + start + beat / 2, beat), beat / 2, atol=2e-5)
        middle = next(segment for segment in segments if segment.end - segment.start > beat / 2)
        bar = piece.bars[int((start + (middle.start + middle.end) / 2) / beat / 4)]
        root = middle.label.split(":")[0]
        assert bar == "z" if middle.label == "N" else root in [name.rstrip("Mm7") for name in bar.split(" / ")]


def test_every_style_has_files_in_every_split(fonts: Sources):
    from mert_foundry.pipeline.suite.accompaniment_tasks import split_styles

    splits = split_styles(Plans("full", 0, fonts))
    for files in accompaniment.STYLES.values():
        assert {splits[file] for file in files.split()} == {"train", "valid", "test"}
    everything = " ".join(accompaniment.STYLES.values()).split()
    assert len(everything) == len(set(everything)) == len(splits)


def notes_on(channel: int, count: int) -> list[TimedMessage]:
    return [
        TimedMessage(0.1 * index, mido.Message("note_on", channel=channel, note=60, velocity=80))
        for index in range(count)
    ]


@pytest.mark.parametrize(("strings", "expected"), [(0, ("drums",)), (1, ("drums",)), (4, ("strings", "drums"))])
def test_a_family_is_a_tag_from_a_tenth_of_the_notes(strings: int, expected: Sequence[str]):
    program = TimedMessage(0.0, mido.Message("program_change", channel=0, program=41))
    assert tags_task.find_tags([program, *notes_on(0, strings), *notes_on(9, 20)], 0.0) == tuple(expected)


def test_music_is_found_in_a_wad(tmp_path: Path):
    midi = mido.MidiFile()
    midi.tracks.append(mido.MidiTrack([mido.Message("note_on", note=60, velocity=64, time=480)]))
    midi.save(tmp_path / "a.mid")
    content = (tmp_path / "a.mid").read_bytes()
    lumps = [(12, len(content), b"D_E1M1\0\0"), (12, 3, b"FLOOR\0\0\0")]
    header = struct.pack("<4sii", b"IWAD", len(lumps), 12 + len(content))
    directory = b"".join(struct.pack("<ii8s", *lump) for lump in lumps)
    (tmp_path / "a.wad").write_bytes(header + content + directory)
    [(offset, size)] = tags_task.music_lumps(tmp_path / "a.wad")
    assert [timed.time for timed in read_midi((tmp_path / "a.wad").read_bytes()[offset : offset + size])] == [0.5]
    (tmp_path / "b.wad").write_bytes(b"JUNK" + header[4:])
    with pytest.raises(ValueError, match="b.wad.*JUNK"):
        tags_task.music_lumps(tmp_path / "b.wad")


@given(content=st.binary(max_size=200))
def test_what_is_no_midi_file_is_said_to_be_none(content: bytes):
    with pytest.raises(ValueError, match="MIDI"):
        read_midi(content)


def test_other_programs_replace_all_but_the_drums():
    piece = as_messages([(0, 5, [Note(0, 1, 60, 90)]), (9, 0, [Note(0, 1, 38, 90)])])
    changed = with_programs(piece, range(40, 56))
    programs = {
        timed.message.channel: timed.message.program for timed in changed if timed.message.type == "program_change"
    }
    assert programs[0] == 40 and programs[9] == 0


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Kick (Tama Superstar 22\")", "kick"), ("Snare Rimshot", "snare"), ("Hand Clap", "clap"),
        ("Pearl Tom Floor", "tom"),
        ("Closed HH", "hat"), ("Sabian Hat Semi-Open", "hat"), ("Crash Left", "cymbal"), ("Ride Bell", "cymbal"),
        ("Rim Click", "stick"), ("Cowbell", "other"), ("drum_bass_hard", "kick"), ("bd_haus", "kick"),
        ("Tom Low", "tom"),
        ("drum_cymbal_closed", "hat"), ("drum_cymbal_soft", "cymbal"), ("Hi Hat Opened", "hat"), ("27", None),
        ("Zap 1", None),
    ],
)  # fmt: skip
def test_names_of_drums(name: str, label: str | None):
    assert drum_task.label_of(name) == label


@given(sizes=st.lists(st.integers(1, 60), min_size=5, max_size=20))
def test_folds_hold_whole_kits_and_about_as_many_hits(sizes: list[int]):
    folds = drum_task.fold_kits([f"kit{index}" for index, size in enumerate(sizes) for _ in range(size)])
    totals = [sum(size for index, size in enumerate(sizes) if folds[f"kit{index}"] == fold) for fold in range(5)]
    assert sum(totals) == sum(sizes) and max(totals) - min(totals) <= max(sizes)


def test_the_guitar_is_on_where_it_sounds_and_is_not_muted():
    guitar = np.concatenate([tone(440, 3), 0 * tone(440, 2), tone(440, 2)])
    assert guitar_task.find_playing(guitar).tolist() == [True] * 3 + [False] * 2 + [True] * 2
    gate = guitar_task.draw_gate(300, generator(1))
    assert 0.3 < gate.mean() < 0.7
    segments = guitar_task.as_segments(np.array([True, True, False, True]))
    assert [(segment.start, segment.end, segment.label) for segment in segments] == [
        (0, 2, "on"), (2, 3, "off"), (3, 4, "on"),
    ]  # fmt: skip


@given(count=st.integers(3, 300), seed=st.integers(0, 9))
def test_groups_go_whole_to_three_splits(count: int, seed: int):
    splits = split_groups([f"group{index}" for index in range(count)] * 2, generator(seed))
    sizes = [list(splits.values()).count(split) for split in ("train", "valid", "test")]
    assert sum(sizes) == count and min(sizes) >= 1
    assert sizes[2] == max(1, round(0.2 * count))


def few(plan: FamilyPlan, count: int) -> FamilyPlan:
    """The first clips of every task alone, with their audio."""
    tasks = tuple(TaskPlan(task.task, task.clips[:count]) for task in plan.tasks)
    named = {clip.path for task in tasks for clip in task.clips}
    return FamilyPlan(tasks, tuple(audio for audio in plan.audio if f"../{audio.path}" in named))


def write_all(out: Path, plans: Plans, plan: FamilyPlan) -> None:
    found = begin(out, plans)
    for audio in missing_audio(out, plan.audio):
        MakeAudio(out, plans)(audio)
    write_tasks(out, found, plan, {})


def test_what_is_on_disk_is_the_contract_with_the_probe(fonts: Sources, tmp_path: Path):
    plans = Plans("small", 0, fonts)
    plan = few(note_tasks.plan(plans), 3)
    write_all(tmp_path / "suite", plans, plan)
    for task in plan.tasks:
        folder = tmp_path / "suite" / task.task.name
        described = yaml.safe_load((folder / "task.yaml").read_text())
        lines = (folder / described.pop("clips")).read_text().splitlines()
        assert ProbeTask.model_validate(described) == task.task
        clips = [ProbeClip.model_validate_json(line) for line in lines]
        assert tuple(clips) == task.clips
        for clip in clips:
            path = (folder / clip.path).resolve()
            assert path.is_relative_to((tmp_path / "suite").resolve())
            header = soundfile.info(path)
            assert (header.samplerate, header.channels, header.frames) == (SAMPLE_RATE, 1, 2 * SAMPLE_RATE)
    found = read_suite(tmp_path / "suite")
    assert found.tasks["pitch"].clips == {"train": 3} and found.tasks["pitch"].seconds == 6
    write_all(tmp_path / "again", plans, plan)
    assert read_suite(tmp_path / "again").fingerprint == found.fingerprint
    for audio in plan.audio:
        one, other = (soundfile.read(tmp_path / name / audio.path)[0] for name in ("suite", "again"))
        assert np.array_equal(one, other)


def test_a_changed_sound_changes_the_fingerprint(fonts: Sources, tmp_path: Path):
    plans = Plans("small", 0, fonts)
    plan = few(note_tasks.plan(plans), 1)
    write_all(tmp_path / "one", plans, plan)
    louder = tuple(
        replace(audio, recipe=replace(audio.recipe, note=audio.recipe.note._replace(start=0.5))) for audio in plan.audio
    )
    write_all(tmp_path / "other", plans, replace(plan, audio=louder))
    assert read_suite(tmp_path / "one").fingerprint != read_suite(tmp_path / "other").fingerprint


def test_a_missing_package_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match=r"package mma is missing: run `apt-get download mma`.*packages"):
        Sources(tmp_path).fetch(["mma"], print)
    with pytest.raises(SourceError, match="freedoom is missing"):
        Sources(tmp_path).path("freedoom")


def test_a_folder_of_another_seed_or_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    begin(tmp_path / "made", Plans("small", 0, Sources(tmp_path)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "manifest.yaml").write_text("mine")
    for folder, arguments, message in (
        ("made", ["seed=1"], "a suite of seed 0, not 1"),
        ("made", ["--size", "full"], "a suite of size small, not full"),
        ("manifest", [], "is a manifest folder (it has manifest.yaml); a suite folder goes into another folder"),
        ("other", [], "is not empty and holds no suite.yaml"),
        ("new", ["--tasks", "pitch,melody"], "there is no task 'melody'"),
        ("new", ["--size", "huge"], "size: Input should be 'small' or 'full'"),
    ):
        assert run(suite.main, [str(tmp_path / folder), *arguments], suite.__doc__) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.process
@pytest.mark.slow
def test_a_command_that_was_stopped_goes_on(kits: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "suite"
    arguments = [str(out), "--size", "small", "--tasks", "drum", f"sources={kits}", "workers=1", "--quiet"]
    assert run(suite.main, arguments, suite.__doc__) == 0
    first = read_suite(out)
    assert first.sources["sonic-pi-samples"].licence == "made here"
    clips = [json.loads(line) for line in (out / "drum" / "clips.jsonl").read_text().splitlines()]
    assert sorted({clip["label"] for clip in clips}) == ["hat", "kick", "snare"] and len(clips) == 19
    assert {clip["fold"] for clip in clips} == set(range(5))
    assert len({(clip["group"], clip["fold"]) for clip in clips}) == len({clip["group"] for clip in clips})

    audio = sorted((out / "audio").rglob("*.ogg"))
    kept, lost = audio[0], audio[1]
    digest, changed = read_digest(lost), kept.stat().st_mtime_ns
    lost.unlink()
    (out / "suite.yaml").write_text(yaml.safe_dump({"version": first.version, "size": "small", "seed": 0}))
    (lost.parent / ".leftover.tmp").write_bytes(b"half a file")
    assert run(suite.main, arguments, suite.__doc__) == 0
    assert read_suite(out) == first and read_digest(lost) == digest
    assert kept.stat().st_mtime_ns == changed and not list(lost.parent.glob(".*.tmp"))
