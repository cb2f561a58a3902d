"""A table leaves out whole columns, the least important first, where it is wider than the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedcompress.formatting import escaped

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

GAP = 3  # columns of a terminal between two columns of a table, with their lines
LEAST = 16  # columns of a terminal that texts are folded to at least


@dataclass(frozen=True, kw_only=True)
class FittedTable:
    """Holds a table that rich prints in the width it has.

    A number is never cut: a column is there in full or not at all. Texts in ``folded`` are wrapped instead.

    Attributes:
        names: heads of the columns.
        rows: cells of each row, as many as there are names.
        dropped: heads of the columns that may be left out, the least important first.
        folded: heads of the columns of texts, which are to the left and may be wrapped; others are to the right.
        title: above the table; empty for none.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    dropped: Sequence[str] = ()
    folded: Sequence[str] = ()
    title: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table in the width of the console, and a line that names what was left out."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        shown = self.choose_columns(options.max_width)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escaped(self.title) or None, title_justify="left")
        for name in shown:
            is_text = name in self.folded
            table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        indices = [list(self.names).index(name) for name in shown]
        for row in self.rows:
            table.add_row(*(Text(escaped(row[i])) for i in indices))
        yield table
        left_out = [name for name in self.names if name not in shown]
        if left_out:
            yield Text(f"left out, for want of width: {', '.join(left_out)}; --json has all", style="dim")

    def choose_columns(self, width: int) -> list[str]:
        """Return the heads of the columns that fit a width, in order; those that may not be left out always do."""
        shown = list(self.names)
        for name in self.dropped:
            if sum(map(self._measure, shown)) + GAP * (len(shown) - 1) <= width:
                break
            if name in shown:
                shown.remove(name)
        return shown

    def _measure(self, name: str) -> int:
        """Return how wide a column must be."""
        at = list(self.names).index(name)
        widest = max((len(row[at]) for row in self.rows), default=0)
        return max(len(name), min(widest, LEAST) if name in self.folded else widest)
