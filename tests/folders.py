"""Folders in tests: manifests made of audio, contents to compare, cards to change."""

from pathlib import Path

import yaml

from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest


def make_manifest(root: Path | str, out: Path, **settings: object) -> Path:
    """The manifest of a folder of audio, written to `out`, which is returned."""
    config = ManifestConfig(root=str(root), out=str(out), **settings)
    write_manifest(config, scan(config))
    return out


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """All files below a folder by path; `[!.]*` leaves out those whose names begin with a dot."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


def visible(folder: Path) -> dict[str, bytes]:
    """As `contents`, of files whose names do not begin with a dot."""
    return contents(folder, "[!.]*")


def change_yaml(path: Path, **changes: object) -> None:
    """Set keys of a YAML file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
