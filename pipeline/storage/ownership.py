"""Whether `mert label` wrote a file that has a shard's name; files of others are never overwritten or removed."""

import json
import tarfile
from collections.abc import Set

from mert_foundry.pipeline.storage import files

HEADER = 512  # bytes
MAGIC = slice(257, 263)
# As pipeline/labelling/shard_writer.py has WebDataset's TarWriter write every member.
OWN_HEADER = {"format": b"ustar\0", "user": "mert", "group": "mert", "mode": "444", "time": 0}


def find_tar_fault(location: str) -> str:
    """Why a tar is not ours, from its first header; empty when it is, or holds nothing.

    Raises FileNotFoundError when it is not there.
    """
    header = files.read_start(location, HEADER)
    if not header.strip(b"\0"):  # as a shard without an example begins
        return ""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"it does not begin with the header of a tar ({error})"
    found = {
        "format": header[MAGIC],
        "user": member.uname,
        "group": member.gname,
        "mode": f"{member.mode:o}",
        "time": member.mtime,
    }
    for key, own in OWN_HEADER.items():
        if found[key] != own:
            return f"the {key} of its first member is {found[key]!r}, of ours it is {own!r}"
    return ""


def find_content_fault(content: bytes, keys: Set[str]) -> str:
    """Why a JSON document is not ours, which has all of `keys`; empty when it is, or may be what damage left of one."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        begins = content.strip(b"\0 \t\r\n")[:1]
        return "" if begins in (b"", b"{") else "it is no JSON object"
    if not isinstance(document, dict):
        return "it is no JSON object"
    missing = sorted(keys - document.keys())
    return f"it has no {', '.join(missing)}" if missing else ""
