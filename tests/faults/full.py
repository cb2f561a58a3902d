"""A run on a small disk that is filled at a place, in a process with a mount of its own.

python -m tests.faults.full FOLDER PLACE:TIMES:PAGES ...: a tmpfs in a folder for each, which nobody else sees; prints
a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedcompress.config.train_task import TrainTask
from fedcompress.errors import NoSpaceError
from fedcompress.identity.audit import AuditLog, verify
from fedcompress.storage import failpoints
from fedcompress.storage.disk_space import reserve_space
from server.audit_events import AuditedEvents
from server.coordinator import Coordinator
from server.events import EventLog
from server.transport.base import Incoming
from tests.unit.server.memory import MemoryTransport, World

SIZE = 8 << 20  # bytes of the disk; the log of the ledger alone may take 4 MiB
BEGUN = "server.begun-again:1"  # no failpoint: full between two processes


class Disk:
    """A tmpfs that can be filled to the last pages."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], check=True)
        self.folder, self.filler = folder, folder / "filler"
        self.fills = 0

    def fill(self, pages: int) -> None:
        """Leave so many pages of 4 KiB."""
        self.fills += 1
        free = os.statvfs(self.folder)
        self.filler.write_bytes(bytes((free.f_bavail - pages) * free.f_bsize))

    def free(self) -> None:
        """Take the filler away."""
        self.filler.unlink(missing_ok=True)


class Sites(MemoryTransport):
    """A site whose disk is full answers as its worker would; then somebody frees the disk."""

    def __init__(self, world: World, disk: Disk) -> None:
        super().__init__(world.sites)
        self._disk = disk
        self.said: list[str] = []

    def _answer(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> None:
        try:
            with reserve_space(self._disk.folder):
                super()._answer(node, task, payload, signature)
        except NoSpaceError as error:
            self.said.append(str(error))
            self._disk.free()
            status = {"status": "failed", "site": self.sites[node].name, "code": "disk-full", "message": str(error)}
            self.inbox.append(Incoming(node, status, b""))


def arm(disk: Disk, place: str, pages: int) -> None:
    """At the failpoint, ``name:times``, the disk is filled, and nothing is killed."""
    fill = SimpleNamespace(kill=lambda pid, number: disk.fill(pages), getpid=os.getpid, environ=os.environ)
    failpoints.os = fill
    os.environ[failpoints.VARIABLE] = place
    failpoints._reached.clear()


def attempt(world: World, transport: Sites, rounds: int = 4) -> str:
    """One process of the coordinator; what it died of, empty if it did not."""
    state = world.folder / "coordinator"
    ledger = None
    try:
        with reserve_space(state):
            emit = AuditedEvents(AuditLog(state), "run", EventLog(state, "run"))
            coordinator = Coordinator(
                world.config(patience=3, quorum=3, rounds=rounds), transport, emit, transport.clock
            )
            ledger = coordinator.ledger
            coordinator.run()
    except NoSpaceError as error:
        return str(error)
    finally:
        if ledger is not None:
            ledger.close()
    return ""


def run(folder: Path, place: str, pages: int) -> dict[str, Any]:
    """What was said, and what came out after there was room again."""
    disk = Disk(folder / "small")
    name = "coordinator" if place.startswith("server.") else "sites"
    (folder / "world").mkdir()
    (disk.folder / name).mkdir()
    (folder / "world" / name).symlink_to(disk.folder / name)
    world = World(folder / "world")
    transport, errors, bytes_left = Sites(world, disk), [], b""
    if place == BEGUN:
        attempt(world, transport, rounds=2)
        disk.fill(pages)
    arm(disk, place, pages)
    while (error := attempt(world, transport)) and len(errors) < 8:
        errors.append(error)
        if len(errors) == 3:  # twice begun again on the full disk: that must do no harm either
            disk.free()
            for site in world.sites.values():
                site.reopen()
    bytes_left = world.result() if not error else b""
    lines = (world.folder / "coordinator" / "events.jsonl").read_bytes().splitlines()
    verdict = verify(world.folder / "coordinator")
    return {
        "fills": disk.fills,
        "errors": errors,
        "said": transport.said,
        "adapter": bytes_left.hex(),
        "events": [json.loads(line)["event"] for line in lines],
        "audit": verdict.message if not verdict.ok else "",
        "damaged": [p.name for p in (world.folder / "coordinator").glob("*damaged*")],
        "parts": [str(p) for p in world.folder.rglob("*.part")] + [str(p) for p in disk.folder.rglob("*.part")],
    }


if __name__ == "__main__":
    for case in sys.argv[2:]:
        where, _, left = case.rpartition(":")
        print(json.dumps(run(Path(sys.argv[1]) / case.replace(":", "-"), where, int(left))))
