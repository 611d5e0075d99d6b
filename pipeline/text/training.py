"""A tokenizer trained on a corpus's own text: byte-level byte-pair encoding (BPE), as GPT-2's.

Bytes are the smallest tokens, so any text in any script can be encoded, and decoding gives it back.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<pad>", "<mask>"]  # tokens 0 and 1
BYTES = 256
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
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return tokenizer.to_str(pretty=True).encode()
