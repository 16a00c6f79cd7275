"""run_pipeline.py --compare on a tiny synthetic cohort: its page, going on, and what it refuses before any
work.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tiny_runs import TINY, words_of

import compare
import run_pipeline
from ctseg import artifacts

pytestmark = pytest.mark.usefixtures("small_tensors")

METHODS = ["unet", "unet+model.width=6"]
PLAIN = words_of(**{"evaluate.flip": False})


@pytest.mark.slow
def test_compare_writes_a_page_and_goes_on_where_it_was(tmp_path, cohorts, monkeypatch):
    """Of tubes, so that the comparison tells their topology too.

    The first script is a process; the others are called here, as each process imports torch anew.
    """
    begin, scripts = compare.run_script, []

    def run_script(command: list[str]) -> int:
        script = Path(command[1]).stem
        scripts.append(script)
        return begin(command) if len(scripts) == 1 else importlib.import_module(script).main(command[2:])

    monkeypatch.setattr(compare, "run_script", run_script)
    command = ["--compare", ",".join(METHODS), "--task", "airway", "--data", str(cohorts["airway"])]
    command += ["--workspace", str(tmp_path), *TINY, *PLAIN]
    assert run_pipeline.main(command) == 0
    folder = artifacts.Workspace(tmp_path).comparison
    record = artifacts.read_json(folder / "comparison.json")
    scores = record["statistics"]["methods"]
    assert record["synthetic"] is True and [score["method"] for score in scores] == METHODS
    assert record["costs"]["unet"]["parameters"] < record["costs"]["unet+model.width=6"]["parameters"]
    assert "unet+model.width=6" in (folder / "comparison.html").read_text()
    # a missed structure counts as the image diagonal in one, and not at all in the other
    for score in scores:
        imputed, found = record["costs"][score["method"]]["hd95_imputed_mm"], score["macro"]["hd95_mm"]
        assert found is None or imputed == pytest.approx(found) or score["missed"] > 0
        assert {"cldice", "betti_error", "td_full"} <= set(record["topology"][score["method"]])
    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("best_model.pth")}
    assert len(weights) == 2 and scripts == ["train", "evaluate"] * 2
    assert run_pipeline.main(command) == 0 and len(scripts) == 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("best_model.pth")} == weights
    # what train.py makes of --restart is a test of its own
    monkeypatch.setattr(compare, "run_script", lambda command: scripts.append(command) or 1)
    assert run_pipeline.main([*command, "--restart"]) == 1
    assert len(scripts) == 5 and Path(scripts[-1][1]).name == "train.py" and "--restart" in scripts[-1]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("unet,unett", "did you mean 'unet'?"),
        ("unet,unet+train.augmentatio=none", "did you mean 'train.augmentation'?"),
        ("unet", "--compare unet,multi_decoder"),
    ],
)
def test_compare_refuses_what_does_not_exist_before_any_work(methods, said, tmp_path, cohorts, capsys):
    command = ["--compare", methods, "--data", str(cohorts["airway"]), "--workspace", str(tmp_path), *TINY]
    assert run_pipeline.main(command) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "processed_data").exists()
