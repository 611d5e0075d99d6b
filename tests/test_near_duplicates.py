"""Near duplicates in a corpus of real music: what counts as one, what becomes of it, and that no order changes it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from audio_files import CLIPS, MUSIC, decoded, noise, tone, write_audio
from hypothesis import given, settings
from hypothesis import strategies as st

from mert_foundry.jobs import manifest as command
from mert_foundry.pipeline.audio.blocks import to_float
from mert_foundry.pipeline.fingerprint.landmarks import landmarks
from mert_foundry.pipeline.fingerprint.near_duplicates import NEIGHBOURS, compare, find_near_duplicates
from mert_foundry.pipeline.fingerprint.sketch import MOST_KEYS, Sketch, sketch
from mert_foundry.pipeline.manifest import near_duplicates
from mert_foundry.pipeline.manifest.near_duplicates import MOST_COMPARED, resolve
from mert_foundry.pipeline.manifest.rows import Reject, Track, load_manifest, load_rejects
from mert_foundry.pipeline.manifest.scan import scan
from mert_foundry.pipeline.manifest.settings import ManifestConfig
from mert_foundry.pipeline.manifest.sketches import crashed_sketch, find_sketches

RATE = 24_000
SEED = 5  # with which albums/ is in valid and copies/ in train
COPIES = {"low.mp3", "high.mp3", "encoded.ogg", "quiet.wav", "trimmed.flac", "trimmed.mp3"}


def in_turn(work, tracks: list, crashed) -> Iterator:
    return map(work, tracks)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip in seven guises, other music, another version of the clip, and what has too few landmarks."""
    root = tmp_path_factory.mktemp("corpus")
    clip = to_float(decoded(MUSIC / CLIPS[3]))[: 12 * RATE]
    write_audio(root / "albums" / "clip.wav", clip)
    write_audio(root / "copies" / "low.mp3", clip[::2], RATE // 2)
    write_audio(root / "copies" / "high.mp3", clip)
    write_audio(root / "copies" / "encoded.ogg", clip)
    write_audio(root / "copies" / "quiet.wav", clip * 0.05)
    write_audio(root / "copies" / "trimmed.flac", clip[int(2.3 * RATE) + 77 : -RATE])
    write_audio(root / "copies" / "trimmed.mp3", 0.4 * clip[int(3.1 * RATE) :])
    write_audio(root / "transposed.wav", clip, 25_500)
    write_audio(root / "tone.wav", tone(440, 5))
    write_audio(root / "noise.wav", noise(8))
    for name in CLIPS[4::4]:
        write_audio(root / "others" / Path(name).with_suffix(".wav").name, to_float(decoded(MUSIC / name))[: 10 * RATE])
    return root


@pytest.fixture(scope="module")
def found(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Track | Reject], dict[str, Sketch]]:
    """The results of a scan, and all sketches."""
    out = tmp_path_factory.mktemp("out")
    results = scan(ManifestConfig(root=str(corpus), out=str(out), workers=1, splits={"valid": 0.4}, seed=SEED))
    tracks = [result for result in results if isinstance(result, Track)]
    return results, find_sketches(str(out), str(corpus), tracks, in_turn).found


def made(keys: np.ndarray, frames: np.ndarray, divisor: int = 1) -> Sketch:
    """A sketch of these keys, which are as rare as any."""
    order = np.argsort(keys, kind="stable")
    return Sketch(keys[order], frames[order], divisor, np.unique(keys), divisor)


def names(results: list[Track | Reject], reason: str = "") -> set[str]:
    """Files that are rejected for a reason; those that are not rejected without one."""
    return {Path(result.path).name for result in results if getattr(result, "reason", "") == reason}


def test_copies_are_one_cluster_and_other_music_is_in_none(found):
    results, sketches = found
    (cluster,) = resolve(results, sketches, "all").clusters
    assert {Path(copy.path).name for copy in cluster.tracks} == COPIES | {"clip.wav"}
    assert cluster.cluster == min(copy.key for copy in cluster.tracks) == cluster.tracks[0].key
    starts = {Path(copy.path).name: copy for copy in cluster.tracks}
    assert cluster.tracks[0].path == "albums/clip.wav", "what the others are compared with"
    for name, start, seconds in (("quiet.wav", 0, 12), ("trimmed.flac", 2.3, 8.7), ("trimmed.mp3", 3.1, 8.9)):
        assert starts[name].like == cluster.cluster
        assert starts[name].start == pytest.approx(start, abs=0.1)
        assert starts[name].seconds == pytest.approx(seconds, abs=0.2)
    assert starts["quiet.wav"].share > 0.15 and starts["trimmed.mp3"].share > 0.03


def test_with_all_a_cluster_takes_one_group_and_all_else_stays(found):
    results, sketches = found
    splits = {result.path: result.split for result in results}
    assert splits["albums/clip.wav"] != splits["copies/low.mp3"], "the test needs a cluster that straddles splits"
    outcome = resolve(results, sketches, "all")
    assert names(outcome.results, "near_duplicate") == set()
    copies = [track for track in outcome.results if Path(track.path).parts[0] in ("albums", "copies")]
    trained = next(result for result in results if result.split == "train" and result in results and result.path in {
        copy.path for copy in outcome.clusters[0].tracks
    })  # fmt: skip
    assert {(track.group, track.split) for track in copies} == {(trained.group, "train")}
    others = [track for track in outcome.results if track not in copies]
    assert others and all(track in results for track in others)


def test_first_keeps_the_first_key_and_names_it(found):
    results, sketches = found
    outcome = resolve(results, sketches, "first")
    assert names(outcome.results, "near_duplicate") == COPIES
    clip = next(track for track in outcome.results if track.path == "albums/clip.wav")
    assert clip.split == "train", "copies were trained on"
    details = [result.detail for result in outcome.results if isinstance(result, Reject)]
    assert all(detail.startswith(f"{clip.key} (albums/clip.wav) is kept: ") for detail in details)


def test_best_keeps_the_highest_rate_then_bytes_a_second_then_the_longest(found):
    results, sketches = found
    kept = [copy.path for copy in resolve(results, sketches, "best").clusters[0].tracks if copy.kept]
    assert kept == ["albums/clip.wav"]  # as many bytes a second as quiet.wav, whose key comes later
    changed = [
        msgspec.structs.replace(result, sample_rate=48_000) if result.path == "copies/trimmed.mp3" else result
        for result in results
    ]
    outcome = resolve(changed, sketches, "best")
    assert [copy.path for copy in outcome.clusters[0].tracks if copy.kept] == ["copies/trimmed.mp3"]


def test_a_long_track_is_not_dropped_for_an_excerpt_of_it(found):
    """Both are kept, in one group."""
    results, sketches = found
    clip, other = (decoded(MUSIC / CLIPS[index])[: seconds * RATE] for index, seconds in ((3, 6), (8, 10)))
    excerpt, medley = (sketch(landmarks([audio])) for audio in (clip, np.concatenate([clip, other])))
    [track] = [result for result in results if result.path == "copies/quiet.wav"]
    tracks = [
        msgspec.structs.replace(track, key=key, path=key, audio_sha256=key, seconds=seconds, sample_rate=rate)
        for key, seconds, rate in (("a", 6.0, 48_000), ("b", 16.0, 24_000), ("c", 6.0, 8_000))
    ]
    outcome = resolve(tracks, {"a": excerpt, "b": medley, "c": excerpt}, "best")
    (cluster,) = outcome.clusters
    assert [(copy.key, copy.kept) for copy in cluster.tracks] == [("a", True), ("b", True), ("c", False)]
    assert compare(excerpt, sketch(landmarks([other])), 6.0, 10.0) is None


@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 30), keep=st.sampled_from(["all", "best", "first"]))
def test_the_order_of_results_changes_nothing(found, seed: int, keep: str):
    results, sketches = found
    shuffled = random.Random(seed).sample(results, len(results))
    items = random.Random(seed + 1).sample(list(sketches.items()), len(sketches))
    expected, outcome = resolve(results, sketches, keep), resolve(shuffled, dict(items), keep)
    assert outcome.clusters == expected.clusters
    assert sorted(outcome.results, key=lambda result: result.path) == expected.results


@settings(max_examples=5)
@given(seed=st.integers(0, 1 << 30))
def test_the_index_finds_what_comparing_all_pairs_finds(seed: int):
    """Among many copies, that share each key, and strangers: the same clusters, of sketches of random keys."""
    random = np.random.default_rng(seed)
    originals = [random.integers(1 << 35, size=600, dtype=np.uint64) for _ in range(4)]
    sketches = []
    for number in range(20):
        survived = random.random(600) < 0.5
        keys = np.where(survived, originals[number % 4], random.integers(1 << 35, size=600, dtype=np.uint64))
        frames = np.arange(600, dtype=np.int32) * 3
        sketches.append(made(keys, frames))
    lengths = [40.0] * 20
    assert 20 / 4 < NEIGHBOURS  # so that the index gives all pairs here, not a chain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mert_foundry.pipeline.fingerprint.near_duplicates.BLOCK", 7)
        found = set(find_near_duplicates(sketches, lengths))
    naive = {(a, b) for a in range(20) for b in range(a + 1, 20) if compare(sketches[a], sketches[b], 40.0, 40.0)}
    assert found == naive == {(a, b) for a in range(20) for b in range(a + 1, 20) if a % 4 == b % 4}


def test_more_copies_than_a_key_links_are_joined(found):
    _, sketches = found
    clip = max(sketches.values(), key=lambda one: len(one.keys))
    random = np.random.default_rng(0)
    copies = []
    for _ in range(2 * NEIGHBOURS):
        survived = random.random(len(clip.keys)) < 0.3
        copies.append(made(clip.keys[survived], clip.frames[survived], clip.divisor))
    joined = {0}
    for pair in find_near_duplicates(copies, [12.0] * len(copies)):
        if joined.intersection(pair):
            joined.update(pair)
    assert len(joined) == len(copies)


def test_the_work_of_a_cluster_grows_with_its_tracks(found, monkeypatch: pytest.MonkeyPatch):
    results, _ = found
    track = next(result for result in results if isinstance(result, Track))
    random = np.random.default_rng(0)
    clip = made(np.sort(random.integers(1 << 35, size=60, dtype=np.uint64)), np.arange(60, dtype=np.int32))
    count = 160
    copies = [
        msgspec.structs.replace(track, key=f"k{number:03}", path=f"{number:03}.wav", audio_sha256=f"{number:064x}")
        for number in range(count)
    ]
    compared = []
    monkeypatch.setattr(near_duplicates, "compare", lambda *pair: compared.append(pair) or compare(*pair))
    outcome = resolve(copies, {copy.audio_sha256: clip for copy in copies}, "all")
    assert len(outcome.clusters) == 1 and len(outcome.clusters[0].tracks) == count
    assert len(compared) <= count * (MOST_COMPARED + 2 * NEIGHBOURS) < count * (count - 1) / 2


def test_a_long_recording_keeps_few_keys_and_a_part_of_it_keeps_them_too(found):
    keys = np.sort(np.random.default_rng(0).integers(1 << 35, size=40_000, dtype=np.uint64))
    whole = made(keys, np.arange(40_000, dtype=np.int32))
    thin, part = whole.thinned(16), made(keys[:1000], whole.frames[:1000])
    assert 2_200 < len(thin.keys) < 2_800
    assert np.array_equal(part.thinned(16).keys, thin.keys[thin.frames < 1000])
    assert np.array_equal(whole.thinned(4).thinned(16).keys, thin.keys)
    assert all(len(one.keys) <= 2 * MOST_KEYS for one in found[1].values())
    assert all(np.all(np.diff(one.keys.astype(np.int64)) >= 0) for one in found[1].values())


def test_sketches_are_kept_and_damaged_ones_made_again(corpus: Path, tmp_path: Path, found):
    results, sketches = found
    tracks = [result for result in results if isinstance(result, Track)][:4]
    made: list[str] = []

    def counting(work, tracks, crashed):
        for track in tracks:
            made.append(track.path)
            yield work(track)

    def again() -> dict[str, Sketch]:
        made.clear()
        return find_sketches(str(tmp_path), str(corpus), tracks, counting).found

    first = again()
    assert len(made) == 4 and set(first) == {track.audio_sha256 for track in tracks}
    again()
    assert made == []
    [part] = (tmp_path / "scan" / "sketches").iterdir()
    part.write_bytes(part.read_bytes()[:-40])
    repeated = again()
    assert len(made) == 4
    for digest, one in repeated.items():
        assert np.array_equal(one.keys, first[digest].keys) and np.array_equal(one.frames, sketches[digest].frames)
        assert np.array_equal(one.rare, sketches[digest].rare)
        assert (one.divisor, one.rare_divisor) == (sketches[digest].divisor, sketches[digest].rare_divisor)


def test_a_track_that_cannot_be_fingerprinted_is_a_reject(corpus: Path, tmp_path: Path, found):
    [track] = [result for result in found[0] if result.path == "tone.wav"]
    gone = find_sketches(str(tmp_path), str(tmp_path / "moved"), [track], in_turn)
    assert gone.found == {} and gone.rejects[track.audio_sha256].reason == "unreadable"
    assert crashed_sketch(track)[1].reason == "unreadable"


@pytest.mark.process
@pytest.mark.slow
def test_mert_manifest_reports_near_duplicates_and_says_nothing_of_them_when_not_asked(
    tmp_path: Path, corpus: Path, run_here
):
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("albums/clip.wav", "copies/high.mp3", "tone.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(corpus / name)
    arguments = [f"root={root}", f"out={out}", "workers=1", "splits={}"]
    code, said, errors = run_here(command, *arguments, "near_duplicates.keep=best")
    assert code == 0, errors
    assert "near duplicates: 2 tracks in 1 clusters, 1 kept" in said
    [line] = (out / "near_duplicates.jsonl").read_text().splitlines()
    assert [copy["kept"] for copy in json.loads(line)["tracks"]] == [True, False]
    assert [(reject.path, reject.reason) for reject in load_rejects(str(out))] == [
        ("copies/high.mp3", "near_duplicate")
    ]
    assert {track.path for track in load_manifest(str(out)).tracks} == {"albums/clip.wav", "tone.wav"}
    code, said, _ = run_here(command, *arguments)
    assert code == 0 and "near" not in said and not (out / "near_duplicates.jsonl").exists()
    assert len(load_manifest(str(out)).tracks) == 3 and b"near" not in (out / "manifest.yaml").read_bytes()
