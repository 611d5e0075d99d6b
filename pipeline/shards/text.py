"""Text beside audio: the members `{key}.txt` and `{key}.tokens.npy` of shards whose index.json has a `text`.

All segments of a track have its text. An example without text has a `txt` of no bytes and an array of no tokens, so
that all examples of a set have the same members.

In a set of text alone there is no text beside anything: its target `tokens` is the text (format.py).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from mert_foundry.pipeline.frames import FRAME_RATE
from mert_foundry.pipeline.shards.arrays import HEADER_BYTES, decode_array, encode_array
from mert_foundry.pipeline.shards.statistics import DiscreteCounts, DiscreteSummary, summarise_counts
from mert_foundry.pipeline.shards.target import TargetSpec
from mert_foundry.pipeline.storage.documents import Document

TOKENS = "tokens"
TOKENS_MEMBER = f"{TOKENS}.npy"
# The tokenizer among the teachers of a record, and its tokens among the statistics; no target has a dot in its name.
OF_TEXT = f"text.{TOKENS}"
TEXT_MEMBER = "txt"
TOKENIZER_NAME = "tokenizer.json"  # beside index.json


MOST_TOKENS = 1 << 16  # of a vocabulary of text alone, whose tokens are codes of a target, uint16


class TextSpec(Document):
    """What the text of a set is, as index.json holds it."""

    columns: list[str] = Field(description="Columns of the manifest that it is made of")
    template: str | None = Field(description="How they are joined; null: by a comma and a space")
    dtype: Literal["uint16", "uint32"] = Field(description="NumPy dtype of the tokens, little-endian")
    vocabulary_size: int = Field(gt=0, description="Tokens there are, special ones included")
    fingerprint: str = Field(description="SHA-256 of tokenizer.json, which lies beside index.json")


def token_target(vocabulary_size: int, fingerprint: str) -> TargetSpec:
    """The target of a set of text alone: a token a frame.

    `fingerprint` is the SHA-256 of tokenizer.json, which lies beside index.json.
    """
    return TargetSpec(
        name=TOKENS,
        kind="discrete",
        dtype="uint16",
        frame_rate=FRAME_RATE,
        size=1,
        codebook_size=vocabulary_size,
        fingerprint=fingerprint,
        teacher={"kind": "tokenizer", "vocabulary_size": vocabulary_size},
    )


class Text(NamedTuple):
    """The text of an example and its tokens, uint16 or uint32 `[n]`; of no characters and no tokens where there is
    none.
    """

    text: str
    tokens: np.ndarray


def encode_text(text: Text) -> dict[str, bytes]:
    """Member suffix to bytes."""
    return {TEXT_MEMBER: text.text.encode(), TOKENS_MEMBER: encode_array(text.tokens)}


def decode_text(key: str, members: Mapping[str, bytes], spec: TextSpec) -> Text:
    """What `encode_text` wrote, checked. Raises ValueError naming key, member and both values."""
    try:
        text = members[TEXT_MEMBER].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}.{TEXT_MEMBER}: not UTF-8 ({error})") from error
    decoded = Text(text, decode_tokens(f"{key}.{TOKENS_MEMBER}", members[TOKENS_MEMBER], spec))
    check_text(key, decoded, spec)
    return decoded


def decode_tokens(name: str, data: bytes, spec: TextSpec) -> np.ndarray:
    """The tokens of a member, a read-only view `[n]`. Raises ValueError naming the member."""
    return decode_array(name, data, spec.dtype, (count_tokens(len(data), spec),))


def count_tokens(num_bytes: int, spec: TextSpec) -> int:
    """Tokens in a `{key}.tokens.npy` of so many bytes."""
    return max(0, num_bytes - HEADER_BYTES) // np.dtype(spec.dtype).itemsize


def check_text(key: str, text: Text | None, spec: TextSpec | None) -> None:
    """Raise ValueError naming key and both values when the text of an example is not what the set's spec asks for."""
    if text is None or spec is None:
        if text is not spec:
            raise ValueError(f"{key}: text {text!r}, the set's text is {spec!r}")
        return
    tokens = text.tokens
    if tokens.dtype != np.dtype(spec.dtype) or tokens.ndim != 1:
        raise ValueError(f"{key}.{TOKENS}: {tokens.dtype} {tokens.shape}, expected {spec.dtype} (n,)")
    if len(tokens) and int(tokens.max()) >= spec.vocabulary_size:
        raise ValueError(f"{key}.{TOKENS}: token {int(tokens.max())}, the vocabulary has {spec.vocabulary_size}")


def measure_tokens(spec: TextSpec, tokens: np.ndarray) -> DiscreteCounts:
    """How often each token comes in `[n]`; n may be 0."""
    return DiscreteCounts(counts=[np.bincount(tokens, minlength=spec.vocabulary_size).tolist()])


def summarise_tokens(counts: DiscreteCounts) -> DiscreteSummary:
    """Vocabulary use and perplexity; 0 and 1 where no example has text."""
    return summarise_counts(counts) if any(counts.counts[0]) else DiscreteSummary(usage=[0.0], perplexity=[1.0])


def find_other_tokenizer(labelled: Mapping[str, str], spec: TextSpec | None) -> str:
    """How the text of shards (`labelled`: teachers by target) differs from a set's with this text; empty when it does
    not.
    """
    found, wanted = labelled.get(OF_TEXT), spec.fingerprint if spec else None
    if found == wanted:
        return ""
    if found is None:
        return f"there is no text in the shards, tokenizer {wanted} is to make some"
    if wanted is None:
        return f"text was made by tokenizer {found}, none is to be there"
    return f"text was made by tokenizer {found}, this tokenizer is {wanted}"


def text_suffixes(spec: TextSpec | None) -> Sequence[str]:
    """Member names without `{key}.`."""
    return [TOKENS_MEMBER, TEXT_MEMBER] if spec else []
