"""A ServerApp that sends payloads of growing size through the coordinator's transport, and counts."""

from __future__ import annotations

import gc
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.transport.base import Incoming
from server.transport.flower_grid import GridTransport

app = ServerApp()
PATIENCE = 600.0  # seconds for one payload, there and back


def random_bytes(size: int) -> bytes:
    """Different in every chunk: Flower sends equal ones once."""
    return np.random.Generator(np.random.Philox(size)).bytes(size)


def exchange(transport: GridTransport, node: int, size: int, number: int) -> dict[str, Any]:
    """One payload there and back; what came, in which time, and the most memory so far."""
    payload = random_bytes(size)
    task: Any = SimpleNamespace(to_json=lambda: "{}", round=number)
    began, reply = time.monotonic(), Incoming(node, {}, b"", error=f"nothing within {PATIENCE:.0f} s")
    try:
        transport.send(node, task, payload)
        while time.monotonic() - began < PATIENCE and (found := list(transport.receive(5.0))) is not None:
            if found:
                reply = found[0]
                break
        error = reply.error
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"[:300]
    seconds = time.monotonic() - began
    is_same = reply.payload == payload
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"size": size, "same": is_same, "error": error, "seconds": seconds, "peak": peak}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A line of JSON for each size, and one at the end."""
    transport, out = GridTransport(grid), Path(str(context.run_config["out"]))
    while not (nodes := transport.nodes()):
        list(transport.receive(0.2))
    for number, size in enumerate(json.loads(str(context.run_config["sizes"])), start=1):
        found = exchange(transport, nodes[0], size, number)
        gc.collect()
        with out.open("a") as stream:
            stream.write(json.dumps(found) + "\n")
    with out.open("a") as stream:
        stream.write(json.dumps({"event": "finished"}) + "\n")
