"""Format of one example: round trip, what is refused, and damage that must not crash."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_fixtures import CODES, CQT, SPECS, make_example

from mert_foundry.pipeline.shards.format import (
    SegmentInfo,
    check_key,
    check_specs,
    decode_array,
    decode_example,
    encode_array,
    encode_example,
)


@pytest.mark.parametrize("audio_member", ["flac", "pcm.npy"])
def test_round_trip(audio_member):
    example = make_example("a-track_1", 40, start_frame=30, segment=1, segments=2)
    members = encode_example(example, SPECS, audio_member)
    assert list(members) == sorted(["codes.npy", "cqt.npy", audio_member, "json"])
    decoded = decode_example("a-track_1-00001", members, SPECS, audio_member)
    assert decoded.info == example.info
    np.testing.assert_array_equal(decoded.audio, example.audio)
    for spec in SPECS:
        assert decoded.targets[spec.name].dtype == np.dtype(spec.dtype)
        np.testing.assert_array_equal(decoded.targets[spec.name], example.targets[spec.name])


def test_full_scale_survives_flac():
    example = make_example("loud", 4)
    noise = np.random.default_rng(0).integers(-32768, 32768, 4 * 320).astype(np.int16)
    members = encode_example(replace(example, audio=noise), SPECS, "flac")
    np.testing.assert_array_equal(decode_example("loud-00000", members, SPECS, "flac").audio, noise)


def test_memory_layout_does_not_change_bytes():
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert encode_array(np.asfortranarray(array)) == encode_array(array)
    assert encode_array(array.astype(">u2")) == encode_array(array)


def changed(name, change):
    """A 10-frame example with one target changed in place."""
    example = make_example("t", 10)
    targets = {key: array.copy() for key, array in example.targets.items()}
    targets[name] = change(targets[name])
    return replace(example, targets=targets)


def with_value(value):
    def change(array):
        array[1, 1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (changed("codes", with_value(16)), ["t-00000.codes", "code 16", "16 entries"]),
        (changed("cqt", with_value(np.nan)), ["t-00000.cqt", "1 of 40"]),
        (changed("cqt", with_value(np.inf)), ["t-00000.cqt", "1 of 40"]),
        (changed("codes", lambda a: a[:, :-1]), ["t-00000.codes", "(2, 9)", "(2, 10)"]),
        (changed("cqt", lambda a: a[1:]), ["t-00000.cqt", "(9, 4)", "(10, 4)"]),
        (changed("cqt", lambda a: a.astype(np.float32)), ["t-00000.cqt", "float32", "float16"]),
        (replace(make_example("t", 10), audio=np.zeros(3199, np.int16)), ["t-00000", "(3199,)", "(3200,)"]),
        (replace(make_example("t", 10), audio=np.zeros(3200, np.float32)), ["t-00000", "float32", "int16"]),
        (replace(make_example("t", 10), targets={}), ["t-00000", "[]", "['codes', 'cqt']"]),
        (make_example("t" * 90, 10), ["t" * 90, "106 bytes", "100"]),
    ],
)
def test_refuses_what_breaks_the_format(example, words):
    with pytest.raises(ValueError) as error:
        encode_example(example, SPECS, "flac")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("key", ["a.b", "a/b", "../a", "", "a b", "ä", "-a", "a\n"])
def test_refuses_keys_that_cannot_name_members(key):
    with pytest.raises(ValueError, match="example key"):
        check_key(key, ["json"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_samples": 3201}, ["3201", "10"]),
        ({"start_sample": 1}, ["start_sample 1", "320"]),
        ({"segment": 1}, ["segment 1", "1 segments"]),
        ({"sample_rate": 16000}, ["16000", "24000"]),
        ({"track": "a.b"}, ["track"]),
        ({"extra": 1}, ["extra"]),
    ],
)
def test_refuses_segments_that_do_not_agree(change, words):
    with pytest.raises(ValueError) as error:
        SegmentInfo.model_validate(make_example("t", 10).info.model_dump() | change)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([CODES, CODES], "codes: the name is taken"),
        ([CQT.model_copy(update={"name": "audio"})], "audio: the name is taken"),
        ([CQT.model_copy(update={"frame_rate": 50})], "50 Hz, shards hold 75 Hz"),
        ([CQT.model_copy(update={"dtype": "uint16"})], "float16, not uint16"),
        ([CODES.model_copy(update={"codebook_size": None})], "codebook size None"),
        ([CODES.model_copy(update={"codebook_size": 65537})], "codebook size 65537"),
    ],
)
def test_refuses_specs_that_cannot_be_stored(specs, words):
    with pytest.raises(ValueError, match=words):
        check_specs(specs)


def test_decode_names_what_is_missing_or_foreign():
    members = encode_example(make_example("t", 10), SPECS, "flac")
    with pytest.raises(ValueError, match="u-00000.json: describes t-00000"):
        decode_example("u-00000", members, SPECS, "flac")
    with pytest.raises(ValueError, match="t-00000: members .* expected"):
        decode_example("t-00000", {"json": members["json"]}, SPECS, "flac")
    other = encode_example(make_example("t", 11), SPECS, "flac")
    for suffix in ("flac", "codes.npy", "cqt.npy"):
        with pytest.raises(ValueError, match=rf"t-00000.{suffix}: .*expected"):
            decode_example("t-00000", members | {suffix: other[suffix]}, SPECS, "flac")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # Python parses a damaged .npy header
@settings(max_examples=300, deadline=None)
@given(data=st.data(), audio_member=st.sampled_from(["flac", "pcm.npy"]))
def test_damage_is_a_value_error_or_nothing(data, audio_member):
    members = encode_example(make_example("t", 3), SPECS, audio_member)
    suffix = data.draw(st.sampled_from(sorted(members)))
    content = bytearray(members[suffix])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        start = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=80))
        content[start : start + len(junk)] = junk
    try:
        decode_example("t-00000", members | {suffix: bytes(content)}, SPECS, audio_member)
    except ValueError as error:
        assert str(error).startswith("t-00000")


def test_a_damaged_shape_costs_no_memory():
    huge = encode_array(np.zeros((3, 4), np.float16)).replace(b"(3, 4), }           ", b"(3, 4000000000), }  ")
    with pytest.raises(ValueError, match=r"x: float16 \(3, 4000000000\), expected float16 \(3, 4\)"):
        decode_array("x", huge, "float16", (3, 4))
