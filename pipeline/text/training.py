"""A tokenizer trained on a corpus's own text: byte-level byte-pair encoding (BPE), as GPT-2's.

Bytes are the smallest tokens, so any text in any script can be encoded, and decoding gives it back.
"""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<pad>", "<mask>"]  # tokens 0 and 1
BYTES = 256
# The time of training grows with the square of a stretch without a space: 2 MB of letters would take 45 minutes.
LONGEST_STRETCH = 1000  # characters; longer ones are cut
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + BYTES


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """The content of a tokenizer.json of at most `vocabulary_size` tokens: special ones, bytes, then merges by how
    often they come.

    It is a pure function of how often each text comes, not of their order.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_cut_stretches, sorted(texts)), trainer)
    return tokenizer.to_str(pretty=True).encode()


def _cut_stretches(text: str) -> str:
    """The text with a line break after each `LONGEST_STRETCH` characters without a space."""
    return re.sub(rf"\S{{{LONGEST_STRETCH}}}(?=\S)", r"\g<0>\n", text)
