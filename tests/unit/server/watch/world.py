"""State directories to watch: of real rounds in memory, and with hostile rows."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.unit.server.commands.world import settled
from tests.unit.server.memory import World

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
ESCAPES = "\x1b[31mred\x1b[0m \u202eturned\n# HELP x"
HOSTILE = (SCRIPT, IMAGE, ESCAPES, "a\\b", "{x}", "'; DROP TABLE site; --", "é \U0001f4a5 \x00")


def finished(folder: Path) -> Path:
    """State directory of a run of three sites that has ended."""
    world = World(folder)
    world.run()
    settled(world)
    return folder / "coordinator"


def query(state: Path, text: str, *args: object) -> list[tuple[object, ...]]:
    """Rows of the ledger."""
    with sqlite3.connect(state / "ledger.db") as database:
        return database.execute(text, args).fetchall()


def poison(state: Path) -> None:
    """Rows as no admission would let them in: names and texts that try to break out of where they are shown."""
    with sqlite3.connect(state / "ledger.db") as database:
        for i, name in enumerate(HOSTILE):
            database.execute(
                "INSERT INTO site (run, site, node, acked, examples, rate) VALUES ('run', ?, ?, 1, 5, 10)",
                (name, str(i)),
            )
            for way, kind in (("up", "update"), ("down", "state")):
                database.execute(
                    "INSERT INTO message (run, round, node, site, direction, kind, payload, digest, at, protocol)"
                    " VALUES ('run', 1, ?, ?, ?, ?, 100, '', 0, 7)",
                    (str(i), name, way, kind),
                )
            database.execute(
                "INSERT INTO refusal (run, round, node, site, code, message, at) VALUES ('run', 1, ?, ?, ?, ?, 0)",
                (str(i), name, name, name),
            )
