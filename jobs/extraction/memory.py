"""Keep freed memory in the heap, so that the kernel need not zero it again."""

import ctypes

# Of mallopt(3).
TRIM_THRESHOLD, MMAP_MAX = -1, -4
KEPT_BYTES = 1 << 30


def keep_memory() -> None:
    """Let glibc serve large arrays from its heap and keep what is freed of it.

    By default each large array comes from the system and goes back to it. Filling its pages with zeros took a third of
    the time of a small encoder on a CPU. Another C library is left as it is.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
