"""A tokenizer of Hugging Face `tokenizers`: from a tokenizer.json, whoever made it, to tokens as shards hold them."""

import hashlib
from typing import Literal

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from mert_foundry.pipeline.shards.text import TOKENIZER_NAME, Text, TextSpec
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.text.columns import TextColumns


class TextTokenizer:
    """Encodes text by the content of a tokenizer.json; the same text always gives the same tokens.

    Padding that the file asks for is not done: the stream pads. Nor is the dropout of merges, which is random. Its
    truncation is. Names of special tokens that stand in a text are text; those that the file's post-processor puts
    around a text are added.

    Raises ValueError naming `location` when the content is no tokenizer.
    """

    def __init__(self, location: str, content: bytes):
        self.location = location
        self.content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{location}: no tokenizer ({error})") from error
        self._tokenizer.no_padding()
        if isinstance(self._tokenizer.model, BPE):
            self._tokenizer.model.dropout = None
        self._tokenizer.encode_special_tokens = True
        # Tokens may be numbered with gaps: the highest one decides.
        self.vocabulary_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def keep_whole(self) -> None:
        """From now on encode texts of any length whole, also where the file asks for truncation."""
        self._tokenizer.no_truncation()

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """Of tokens: uint16, or uint32 for a vocabulary that needs it."""
        return "uint16" if self.vocabulary_size <= 1 << 16 else "uint32"

    def spec(self, columns: TextColumns) -> TextSpec:
        """What index.json says of text from these columns."""
        return TextSpec(
            columns=columns.columns,
            template=columns.template,
            dtype=self.dtype,
            vocabulary_size=self.vocabulary_size,
            fingerprint=self.fingerprint,
        )

    def encode(self, text: str) -> Text:
        """A text with its tokens, `[n]`; no tokens for an empty one.

        Raises ValueError naming the tokenizer and the text that it cannot encode, as one of words without a token for
        unknown ones.
        """
        try:
            tokens = self._tokenizer.encode(text).ids if text else []
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{self.location}: the text {text[:100]!r} cannot be encoded ({error})") from error
        return Text(text, np.array(tokens, self.dtype))

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `[n]` tokens, special ones included; a part of a letter at either end is shown as such."""
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """What each of `[n]` tokens stands for, as people can read it; bytes that are a part of a
        letter show as such.
        """
        return [self._tokenizer.decode([int(token)], skip_special_tokens=False) for token in tokens]


def load_tokenizer(location: str) -> TextTokenizer:
    """The tokenizer of a file, or of a folder that has a tokenizer.json.

    Raises FileNotFoundError, or ValueError naming the file when it is no tokenizer.
    """
    if not location.endswith(".json"):
        location = files.join(location, TOKENIZER_NAME)
    return TextTokenizer(location, files.read_bytes(location))


def load_set_tokenizer(folder: str, fingerprint: str) -> TextTokenizer:
    """The tokenizer of a shard set, which lies beside its index; `fingerprint` is that of the index.

    Raises FileNotFoundError, and ValueError for another one, naming both fingerprints.
    """
    tokenizer = load_tokenizer(files.join(folder, TOKENIZER_NAME))
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(f"{folder}/{TOKENIZER_NAME}: SHA-256 {tokenizer.fingerprint}, index.json says {fingerprint}")
    return tokenizer
