"""Nothing that is received is unpickled: an import hook watches a whole run, its sites and its export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# pickle itself is imported by numpy and the standard library; what must not happen is a load.
PROBE = """
import pickle, sys
def refuse(*args, **kwargs):
    raise SystemExit("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refuse
sys.modules["_pickle"].load = sys.modules["_pickle"].loads = sys.modules["_pickle"].Unpickler = refuse
from pathlib import Path
from tests.unit.server.memory import World
world = World(Path(sys.argv[1]))
world.run(rounds=2)
print(len(world.result()))
"""


def test_a_run_unpickles_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_probe_finds_one() -> None:
    text = PROBE.split("from pathlib")[0] + "pickle.loads(pickle.dumps(1))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "unpickled" in done.stderr
