"""Train a tokenizer (tokenizer.json) on a manifest's own text, or on text files: byte-level BPE, by Hugging Face's
library tokenizers.

    mert tokenizer configs/tokenizer.yaml manifest=MANIFEST_FOLDER out=TOKENIZER_FOLDER 'columns=[title, tags]'
    mert tokenizer configs/tokenizer.yaml documents.root=FOLDER out=TOKENIZER_FOLDER

It makes no shards. With its tokenizer, mert label puts text beside audio (`text.tokenizer`), and mert tokenize makes
shards of text alone (`tokenizer`).

Text is columns of the manifest, from the list of files (mert manifest ... files=LIST.csv) or the files' tags
(tags=[title, artist]), or the files below a folder. The folder gets tokenizer.json, which opens in transformers, and
tokenizer.yaml, which says what it was trained on. Tokens 0 and 1 are <pad> and <mask>, then come the 256 bytes, then
what the training joined, so that any text can be encoded. The same text and settings give the same bytes.
"""

import hashlib
import sys
from typing import NamedTuple

import yaml
from pydantic import Field, model_validator

from mert_foundry.jobs.command.config import load_config
from mert_foundry.jobs.command.console import console
from mert_foundry.jobs.command.line import run
from mert_foundry.model.runs.publish import publish_folder
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.shards.text import TOKENIZER_NAME
from mert_foundry.pipeline.storage import files
from mert_foundry.pipeline.storage.folder_kinds import TOKENIZER, check_output
from mert_foundry.pipeline.text.columns import TextColumns, check_columns
from mert_foundry.pipeline.text.documents import DocumentFolder, find_documents, read_texts
from mert_foundry.pipeline.text.tokenizer import TextTokenizer
from mert_foundry.pipeline.text.training import SMALLEST_VOCABULARY, train_tokenizer


class TokenizerConfig(TextColumns):
    """What `mert tokenizer` needs to know."""

    manifest: str | None = Field(default=None, description="Manifest folder, with `columns`; or `documents`")
    documents: DocumentFolder | None = Field(default=None, description="Text files, in place of a manifest; null: none")
    columns: list[str] = Field(default=[], description="Columns of the manifest's list of files, such as [title, tags]")
    out: str = Field(description="Local folder for tokenizer.json")
    vocabulary_size: int = Field(
        default=8192,
        ge=SMALLEST_VOCABULARY,
        description="Tokens at most, special ones and bytes included; little text gives fewer",
    )
    split: str = Field(default="train", description="Split whose text is used")

    @model_validator(mode="after")
    def _one_source(self) -> "TokenizerConfig":
        if (self.manifest is None) == (self.documents is None):
            there = "neither is" if self.manifest is None else "both are"
            raise ValueError(f"manifest or documents.root says where the text is: {there} given")
        if (self.manifest is None) == bool(self.columns):
            raise ValueError("columns are for a manifest" if self.columns else "columns of the manifest must be named")
        return self

    def recorded(self) -> dict:
        """The settings that shape the result, without folders."""
        if self.documents is None:
            return self.model_dump(mode="json", exclude={"manifest", "documents", "out"})
        return self.model_dump(
            mode="json",
            exclude={"manifest": True, "columns": True, "template": True, "out": True, "documents": {"root"}},
        )


class Source(NamedTuple):
    """The texts to train on, and what tokenizer.yaml says of where they come from; `tracks`: a manifest's in the split,
    with text or without.
    """

    texts: list[str]
    digest: dict[str, str]
    tracks: int | None = None


CONFIG = TokenizerConfig


def main(arguments: list[str]) -> int:
    config = load_config(CONFIG, arguments)
    out = files.local_path(config.out)
    check_output(config.out, TOKENIZER)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; train into a new folder")
    source = read_documents(config.documents, config.split) if config.documents else read_columns(config)
    texts = source.texts
    content = train_tokenizer(texts, config.vocabulary_size)
    tokenizer = TextTokenizer(TOKENIZER_NAME, content)
    num_tokens = sum(len(tokenizer.encode(text).tokens) for text in texts)
    result = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "texts": len(texts),
        **({} if source.tracks is None else {"tracks_without_text": source.tracks - len(texts)}),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": num_tokens,
        "sha256": tokenizer.fingerprint,
    }
    card = {"config": config.recorded(), **source.digest, **result}
    with publish_folder(out) as folder:
        (folder / TOKENIZER_NAME).write_bytes(content)
        (folder / "tokenizer.yaml").write_bytes(yaml.safe_dump(card).encode())
    console.finish(
        {"out": config.out, **result},
        [
            f"{len(texts)} texts{'' if source.tracks is None else f' of {source.tracks} tracks'}, {result['bytes']}"
            f" bytes in {num_tokens} tokens",
            f"tokenizer: {config.out}, vocabulary of {tokenizer.vocabulary_size}",
        ],
    )
    return 0


def read_columns(config: TokenizerConfig) -> Source:
    """The text of a manifest's tracks. Raises ValueError when there is none, or no such column."""
    assert config.manifest is not None, "one of the two is given"
    manifest = load_manifest(config.manifest)
    check_columns(config, manifest.tracks)
    tracks = [track for track in manifest.tracks if track.split == config.split]
    texts = [text for track in tracks if (text := config.text_of(track))]
    if not texts:
        raise ValueError(f"{config.manifest}: none of {len(tracks)} tracks in split {config.split!r} has text")
    return Source(texts, {"manifest_sha256": manifest.sha256}, len(tracks))


def read_documents(folder: DocumentFolder, split: str) -> Source:
    """The text of the documents of a split. Raises ValueError when there is none."""
    found = find_documents(folder).rows
    rows = [row for row in found if row.split == split]
    if not rows:
        raise ValueError(f"{folder.root}: none of {len(found)} documents is in split {split!r}")
    digest = hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest()
    return Source(list(read_texts(folder.root, rows)), {"documents_sha256": digest})


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], __doc__, CONFIG))
