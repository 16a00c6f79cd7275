"""docs/codes.md: what exit codes and the codes in messages mean, from ctseg/errors.py and the table beside
it.

python benchmarks/codes_page.py            write the page
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ctseg.errors import EXIT_CODES, code_table

PAGE = ROOT / "docs" / "codes.md"
HEAD = """# Codes

Every message has one form: `ERROR CODE case=... file=...: what is wrong. Fix: what to do.` ERROR: the case
or the run stops. WARN: it is used, look at it. NOTE: it is used, good to know. Codes are stable: one may be
added, none is renamed. This page is made from `ctseg/errors.py` and `ctseg/codes.csv`:
`python benchmarks/codes_page.py`.

## Exit codes

"""


def page() -> str:
    """The page as it should be."""
    exits = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    rows = "".join(f"| `{row['code']}` | {row['meaning']} | {row['remedy']} |\n" for row in code_table())
    tables = f"| code | meaning |\n|---|---|\n{exits}\n## Codes in messages\n\n"
    return f"{HEAD}{tables}| code | meaning | remedy |\n|---|---|---|\n{rows}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
