"""Train a tokenizer on a manifest's own text: byte-level BPE, with the library tokenizers of Hugging Face.

    mert tokenizer configs/tokenizer.yaml manifest=MANIFEST_FOLDER out=TOKENIZER_FOLDER 'columns=[title, tags]'

Text is the columns that the list of files brought into the manifest (mert manifest ... files=LIST.csv). The folder gets
tokenizer.json, which is the `text.tokenizer` of a label config and opens in transformers, and tokenizer.yaml, which says what it
was trained on. Tokens 0 and 1 are <pad> and <mask>, then come the 256 bytes, then what the training joined, so that any text can
be encoded. The same text and settings give the same bytes.
"""

import sys

import yaml
from pydantic import Field

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.text import TOKENIZER_NAME
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import TOKENIZER, check_output
from mert_foundry.pipeline.text.columns import TextColumns, check_columns
from mert_foundry.pipeline.text.tokenizer import TextTokenizer
from mert_foundry.pipeline.text.training import SMALLEST_VOCABULARY, train_tokenizer


class TokenizerConfig(TextColumns):
    """What `mert tokenizer` needs to know."""

    manifest: str = Field(description="Manifest folder")
    out: str = Field(description="Local folder for tokenizer.json")
    vocabulary_size: int = Field(
        default=8192,
        ge=SMALLEST_VOCABULARY,
        description="Tokens at most, special ones and bytes included; little text gives fewer",
    )
    split: str = Field(default="train", description="Split whose text is used")


CONFIG = TokenizerConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    out = files.local_path(config.out)
    check_output(config.out, TOKENIZER)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; train into a new folder")
    manifest = load_manifest(config.manifest)
    check_columns(config, manifest.tracks)
    tracks = [track for track in manifest.tracks if track.split == config.split]
    texts = [text for track in tracks if (text := config.text_of(track))]
    if not texts:
        raise ValueError(f"{config.manifest}: none of {len(tracks)} tracks in split {config.split!r} has text")
    content = train_tokenizer(texts, config.vocabulary_size)
    tokenizer = TextTokenizer(TOKENIZER_NAME, content)
    num_tokens = sum(len(tokenizer.encode(text).tokens) for text in texts)
    result = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "texts": len(texts),
        "tracks_without_text": len(tracks) - len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": num_tokens,
        "sha256": tokenizer.fingerprint,
    }
    settings = config.model_dump(mode="json", exclude={"manifest", "out"})
    card = {"config": settings, "manifest_sha256": manifest.sha256, **result}
    with publish_folder(out) as folder:
        (folder / TOKENIZER_NAME).write_bytes(content)
        (folder / "tokenizer.yaml").write_bytes(yaml.safe_dump(card).encode())
    console.finish(
        {"out": config.out, **result},
        [
            f"{len(texts)} texts of {len(tracks)} tracks, {result['bytes']} bytes in {num_tokens} tokens",
            f"tokenizer: {config.out}, vocabulary of {tokenizer.vocabulary_size}",
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))
