"""Compressed texts that the page holds and a browser unpacks when they are looked at."""

import base64
import gzip

LARGEST = 500_000  # letters of one packed table or figure


def pack(text: str, packs: list[str]) -> int:
    """Add a text to the packs, as base64 of gzip; its number. Equal texts give equal packs."""
    packed = gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)
    packs.append(base64.b64encode(packed).decode())
    return len(packs) - 1


def small(text: str, packs: list[str]) -> int | None:
    """As `pack`, but None, and nothing added, where the page would grow by more than `LARGEST`."""
    number = pack(text, packs)
    if len(packs[number]) <= LARGEST:
        return number
    packs.pop()
    return None
