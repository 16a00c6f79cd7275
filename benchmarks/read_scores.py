"""Print the scores of finished workspaces as a Markdown table, for docs/benchmarks.md.

python benchmarks/read_scores.py WORKSPACE [WORKSPACE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ctseg.artifacts import Workspace, read_json


def main() -> int:
    """One table per workspace, with how it was made above it."""
    for root in sys.argv[1:]:
        workspace = Workspace(root)
        summary, history = (
            read_json(workspace.evaluation / "summary_statistics.json"),
            read_json(workspace.history),
        )
        run = read_json(workspace.run_record)
        seconds = [case["seconds"] for case in run["cases"]]
        print(
            f"\n{history['model']}, {history['parameters']:,} parameters, {history['steps']} "
            f"steps in {history['seconds'] / 60:.1f} minutes, "
            f"validation Dice {history['best_val_dice'] or 0:.3f}; {len(seconds)} test scans, "
            f"{sum(seconds) / len(seconds):.1f} s each"
            f"{'; synthetic data' if history['synthetic'] else ''}\n"
        )
        print(
            "| structure | n | Dice | median | 5 % | HD95 mm | ASSD mm | missed "
            "|\n|---|---|---|---|---|---|---|---|"
        )
        for name in history["structures"]:
            dice, presence = summary[f"{name}_dice"], summary["presence"][name]
            hd95, assd = summary[f"{name}_hd95"], summary[f"{name}_assd"]
            cells = [
                f"{value:.{digits}f}" if value is not None else ""
                for value, digits in (
                    (dice["mean"], 3),
                    (dice["median"], 3),
                    (dice["p05"], 3),
                    (hd95["mean"], 1),
                    (assd["mean"], 2),
                )
            ]
            print(f"| {name} | {dice['n']} | {' | '.join(cells)} | {presence['n_missed']} |")
        print(f"| **mean of structures** | | **{summary['headline']['macro_dice']:.3f}** | | | | | |")
        print("| predicting nothing | | 0.000 | | | | | all |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
