"""Seeds as pure functions of what they stand for: no generator state is ever carried or stored."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and strings, the same on every host, process and Python version.

    Python's own `hash` of a string changes from process to process, so the parts go through BLAKE2b.
    Example: `derive_seed(seed, step, "mask", key)`.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
