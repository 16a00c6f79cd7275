"""Tables on disk: what is written is read back, and what is no table is refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from ctseg.errors import IntegrityError
from ctseg.tables import read_csv, write_csv

REMEDY = {"text": {"case_id"}, "required": ("case_id", "dice"), "fix": "run the stage again"}


def test_rows_come_back_with_every_digit(tmp_path):
    rows = [
        {"case_id": "007", "dice": 0.1 + 0.2, "n": np.int64(3), "beside": 1},
        {"case_id": 'a "b", c\nd', "dice": np.float64(1e-17), "n": None},
        {"case_id": "NA", "dice": 1, "n": float("nan")},
    ]
    write_csv(tmp_path / "table.csv", rows, ("case_id", "dice", "n"))
    read = read_csv(tmp_path / "table.csv", **REMEDY)
    assert [row["case_id"] for row in read] == [row["case_id"] for row in rows]
    assert [row["dice"] for row in read] == [0.1 + 0.2, 1e-17, 1.0]
    assert [row["n"] for row in read] == [3.0, None, None] and "beside" not in read[0]


def test_the_text_is_that_of_any_csv_writer(tmp_path):
    columns = ("name", "value", "flag", "list")
    rows = [dict(zip(columns, values)) for values in (("a,b", 2, True, [1, 2]), ("c", 1e300, np.False_, ""))]
    write_csv(tmp_path / "ours.csv", rows, columns)
    with (tmp_path / "theirs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()


def test_no_rows_leave_the_header(tmp_path):
    write_csv(tmp_path / "table.csv", [], ("case_id", "dice"))
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "case_id,dice\n"
    assert read_csv(tmp_path / "table.csv", **REMEDY) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"case_id,dice\na,x\n",
        b"case_id,dice,nsd\na,0.5,nan\n",
        b"case_id,dice,nsd\na,0.5,-inf\n",
        b"case_id,dice\na,0.5,3\n",
        b"case_id,dice\n,0.5\n",
        b"case_id,dice\na,\n",
        b"case_id\na\n",
        b"case_id,dice\n\xff,0.5\n",
    ],
    ids=[
        "empty",
        "blank",
        "word",
        "no number",
        "no end",
        "long row",
        "no name",
        "no value",
        "no column",
        "no UTF-8",
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(IntegrityError, match="ARTIFACT_CORRUPT"):
        read_csv(tmp_path / "table.csv", **REMEDY)
