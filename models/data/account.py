"""What became of the rows of a file: read, used, skipped by reason, with the first row of each reason."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 60  # characters of a row that are shown


@dataclass(slots=True)
class Skipped:
    """Rows that were left out for one reason."""

    count: int
    line: int  # number of the first one, from 1; for Parquet the row's
    shown: str  # its beginning, without control characters


@dataclass(slots=True)
class Account:
    """Rows of one file."""

    name: str
    read: int = 0
    used: int = 0
    columns: tuple[str, ...] = ()  # of a file whose rows all have the same
    skipped: dict[str, Skipped] = field(default_factory=dict)

    def skip(self, reason: str, line: int, row: object) -> None:
        """Count a row that is left out."""
        if (known := self.skipped.get(reason)) is not None:
            known.count += 1
            return
        text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(row)[:SHOWN])
        self.skipped[reason] = Skipped(1, line, text)

    @property
    def left_out(self) -> int:
        """Rows that were not used."""
        return sum(rows.count for rows in self.skipped.values())

    def lines(self) -> list[str]:
        """Return the account as lines of text: a summary, then a line for each reason."""
        out = [f"{self.name}: {self.read:,} rows read, {self.used:,} used"]
        for reason, rows in sorted(self.skipped.items(), key=lambda pair: -pair[1].count):
            out.append(f"  {rows.count:,} skipped: {reason} (first in line {rows.line}: {rows.shown})")
        return out
