"""Sizes, times and foreign text are formatted for people."""

from __future__ import annotations

import time

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Return a number of bytes for people, as in ``1.5 MiB``."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Return a number of seconds for people, as in ``2 h 5 min``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def ago(at: float) -> str:
    """Return for people how long ago a time was, which is given in seconds since 1970."""
    return f"{duration(max(0.0, time.time() - at))} ago"


def escaped(text: str) -> str:
    """Return text that is safe in a line on a terminal: unprintable characters are written as Python escapes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
