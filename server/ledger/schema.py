"""The tables of the ledger are declared here. Every table names the run, so that a state directory may hold several."""

from __future__ import annotations

import sqlite3

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  run TEXT PRIMARY KEY, layout TEXT NOT NULL, adapter_config TEXT NOT NULL, base_fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS version (
  run TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
  envelope TEXT NOT NULL, size INTEGER NOT NULL, state TEXT, residual TEXT, outer_state TEXT,
  PRIMARY KEY (run, version));
CREATE TABLE IF NOT EXISTS round (
  run TEXT NOT NULL, round INTEGER NOT NULL, version INTEGER NOT NULL, asked INTEGER NOT NULL,
  merged INTEGER NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (run, round));
CREATE TABLE IF NOT EXISTS task (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, version INTEGER NOT NULL, node TEXT NOT NULL,
  site TEXT NOT NULL, sent REAL NOT NULL, until REAL NOT NULL, closed REAL, outcome TEXT NOT NULL DEFAULT 'open');
CREATE TABLE IF NOT EXISTS merged (
  run TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, digest TEXT NOT NULL,
  trained_version INTEGER NOT NULL, norm REAL NOT NULL, PRIMARY KEY (run, round, site));
CREATE TABLE IF NOT EXISTS message (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, node TEXT NOT NULL,
  site TEXT NOT NULL, direction TEXT NOT NULL CHECK (direction IN ('up', 'down')),
  kind TEXT NOT NULL, payload INTEGER NOT NULL, digest TEXT NOT NULL, at REAL NOT NULL,
  protocol INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS wire (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, life INTEGER NOT NULL,
  total_up INTEGER NOT NULL, total_down INTEGER NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL,
  carried_up INTEGER NOT NULL, carried_down INTEGER NOT NULL, message INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS metric (
  run TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (run, round, site, name));
CREATE TABLE IF NOT EXISTS refusal (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, node TEXT NOT NULL,
  site TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS site (
  run TEXT NOT NULL, site TEXT NOT NULL, node TEXT NOT NULL, acked INTEGER, merged TEXT NOT NULL DEFAULT '',
  examples INTEGER NOT NULL DEFAULT 0, rate REAL NOT NULL DEFAULT 0, PRIMARY KEY (run, site));
-- What each round asks for, so that no round takes longer for those before it. Older ledgers get these when opened.
CREATE INDEX IF NOT EXISTS message_round ON message (run, round, direction);
CREATE INDEX IF NOT EXISTS message_node ON message (node, direction);
CREATE INDEX IF NOT EXISTS wire_round ON wire (run, round);
CREATE INDEX IF NOT EXISTS wire_site ON wire (site);
CREATE INDEX IF NOT EXISTS refusal_node ON refusal (run, node);
CREATE INDEX IF NOT EXISTS refusal_site ON refusal (run, site);
CREATE INDEX IF NOT EXISTS task_node ON task (run, node, round);
CREATE INDEX IF NOT EXISTS task_site ON task (run, site, round);
CREATE INDEX IF NOT EXISTS task_open ON task (run) WHERE outcome='open';
"""
# Columns that a ledger from before them lacks: (table, column, declaration).
_LATER = (
    ("version", "outer_state", "TEXT"),
    ("message", "protocol", "INTEGER NOT NULL DEFAULT 0"),
    ("site", "examples", "INTEGER NOT NULL DEFAULT 0"),
    ("site", "rate", "REAL NOT NULL DEFAULT 0"),
)


def upgrade(database: sqlite3.Connection) -> None:
    """Add the columns that an older ledger lacks."""
    for table, column, declaration in _LATER:
        if column not in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")
