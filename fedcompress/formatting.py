"""Sizes, times and foreign text for people."""

from __future__ import annotations

import time

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def ago(at: float) -> str:
    """How long ago a time was, in seconds since 1970."""
    return f"{duration(max(0.0, time.time() - at))} ago"


def escaped(text: str) -> str:
    """Text for a terminal or a line: what is not printable is written as Python does."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
