"""Remembers of each run the last task that the site has taken, which also says whether the run has ended."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from clients.runtime.paths import session_dir
from fedcompress.config.train_task import TrainTask

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (run TEXT PRIMARY KEY, task TEXT NOT NULL, at REAL NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class LastTask:
    """Holds the last task of a run, also where another version of fedcompress has taken it.

    Attributes:
        run: name of the run.
        round: number of the round that it was for.
        version: that it led to.
        ended: how the run has ended, one of ``train_task.ENDS``; empty while it goes on.
        text: the whole task as JSON.
        at: when it came, seconds since 1970.
    """

    run: str
    round: int
    version: int
    ended: str
    text: str
    at: float

    def parse(self) -> TrainTask:
        """Parse the whole task.

        Raises:
            ConfigError: it is of another protocol than this version of fedcompress speaks.
        """
        return TrainTask.from_json(self.text)


def record_task(database: sqlite3.Connection, task: TrainTask) -> None:
    """Write the last task of a run; a part of the caller's transaction."""
    values = (task.run, task.to_json(), time.time())
    database.execute("INSERT OR REPLACE INTO task (run, task, at) VALUES (?, ?, ?)", values)


def read_last_tasks(state_dir: Path) -> list[LastTask]:
    """Read the last task of each run, the newest first; none where the site has taken none yet.

    Args:
        state_dir: of the site; its worker may run meanwhile.
    """
    path = session_dir(state_dir) / "session.db"
    if not path.is_file():
        return []
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT run, task, at FROM task ORDER BY at DESC").fetchall()
    except sqlite3.OperationalError:  # the table is not there: no task since it was introduced
        return []
    finally:
        database.close()
    found = []
    for run, text, at in rows:
        fields = json.loads(text)
        ended = str(fields.get("ended", ""))
        found.append(LastTask(run=run, round=fields["round"], version=fields["version"], ended=ended, text=text, at=at))
    return found
