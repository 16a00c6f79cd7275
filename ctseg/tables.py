"""Tables on disk as CSV, by pandas: one header, one line per row, an empty cell for what is undefined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.artifacts import require_regular, write_text
from ctseg.errors import IntegrityError


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write the rows atomically; what they hold beside the columns is left out.

    Floats have as many digits as tell them apart; None, NaN and what a row lacks are empty cells.
    """
    import pandas

    table = pandas.DataFrame(list(rows), columns=list(columns), dtype=object)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_csv(
    path: Path, *, text: Collection[str] = (), required: Collection[str] = (), fix: str
) -> list[dict[str, Any]]:
    """The rows: cells of the `text` columns as they are, all others as finite float, empty ones None.

    Raises IntegrityError ARTIFACT_CORRUPT, whose remedy is `fix`, for what is no such table and for a row
    without one of the `required` cells.
    """
    import pandas

    def number(cell: str) -> float:
        if not math.isfinite(value := float(cell)):
            raise ValueError(f"{cell} where a number is needed")
        return value

    require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # cells without a column
            table = pandas.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        rows = [
            {key: None if cell == "" else cell if key in text else number(cell) for key, cell in row.items()}
            for row in table.to_dict("records")
        ]
    except (OSError, ValueError, pandas.errors.ParserWarning) as error:
        raise IntegrityError(
            "ARTIFACT_CORRUPT", f"not readable as a table ({error})", fix, file=path.name
        ) from error
    if any(row.get(key) is None for row in rows for key in required):
        *others, last = required
        raise IntegrityError(
            "ARTIFACT_CORRUPT", f"a row has no {', '.join(others)} or {last}", fix, file=path.name
        )
    return rows
