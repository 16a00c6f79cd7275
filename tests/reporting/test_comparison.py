"""Comparison of methods: the statistics against known numbers, and the page.

All scores here are made up (synthetic).
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Elements
from PIL import Image
from scipy.stats import kendalltau, rankdata, wilcoxon

from ctseg.errors import IntegrityError, UsageError
from ctseg.reporting import comparison as page
from ctseg.reporting import method_sentences as words
from ctseg.reporting.page import TEMPLATES
from ctseg.scoring import paired
from ctseg.scoring.comparison import ALL, Comparison, compare
from ctseg.scoring.statistics import bca_interval

LEVELS = {"liver": 0.93, "spleen": 0.88, "pancreas": 0.70}
OUTLIER = [0.91, 0.88, 0.0, 0.93, 0.90, 0.86, 0.92, 0.89, 0.84, 0.95]


def row(dice: float | None, state: str = "present", hd95: float | None = None) -> dict[str, Any]:
    """A made-up score; a missed structure has no distance."""
    return {"state": state, "dice": dice, "nsd": dice, "hd95_mm": hd95}


def run(
    better: float = 0.0,
    *,
    seed: int = 0,
    patients: int = 16,
    scatter: float = 0.004,
    shift: float = 0.0,
    missed: float = 0.0,
) -> dict[Any, Any]:
    """Scores of one made-up run.

    The patients are the same ones in every run; `shift` moves all of them (a seed's luck).
    """
    ours, theirs = np.random.default_rng(7), np.random.default_rng([seed, 11])
    rows: dict[Any, Any] = {}
    for patient, (structure, level) in itertools.product(range(patients), LEVELS.items()):
        value = float(
            np.clip(level + ours.normal(0, 0.04) + better + shift + theirs.normal(0, scatter), 0.0, 1.0)
        )
        gone = theirs.random() < missed
        rows[f"p{patient:02d}", f"c{patient:02d}", structure] = (
            row(0.0, "missed") if gone else row(value, hd95=40 * (1 - value))
        )
    return rows


def three_seeds(
    better: float = 0.0, *, spread: float = 0.0, offset: int = 0, **options: Any
) -> dict[int, Any]:
    return {seed: run(better, seed=offset + seed, shift=spread * (seed - 1), **options) for seed in range(3)}


def one(found: Comparison, method: str, metric: str = "dice", structure: str = ALL) -> Any:
    return next(
        p
        for p in found.pairs
        if p.with_reference and p.method == method and p.metric == metric and p.structure == structure
    )


@pytest.fixture(scope="module")
def found() -> Comparison:
    """Four made-up methods with three runs each."""
    return compare(
        {
            "unet": three_seeds(),
            "multi_decoder": three_seeds(0.02, offset=10),
            "vnet": three_seeds(-0.03, offset=20, missed=0.03),
            "multipass_unet": three_seeds(0.012, spread=0.03, offset=30),
        }
    )


# ---- known numbers ----------------------------------------------------------------------------------------


def test_holm_on_known_values() -> None:
    assert np.allclose(paired.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0] and paired.holm([]) == []


def test_wilcoxon_on_known_values() -> None:
    assert paired.wilcoxon_p(np.array([0.01, 0.02, 0.03, 0.04, 0.05, -0.006, 0.07, 0.08])) == pytest.approx(
        0.015625, abs=1e-12
    )
    for n, smallest in ((4, 0.125), (5, 0.0625), (6, 0.03125), (7, 0.015625), (8, 0.0078125)):
        assert paired.wilcoxon_p(np.arange(1.0, n + 1)) == pytest.approx(smallest)
    assert paired.wilcoxon_p(np.zeros(9)) == 1.0


@pytest.mark.parametrize(
    "d",
    [[0.5, 1.1, -1.4, 2.2, 3.1, -0.2, 4.5], [0.5, 0.5, -0.5, 2.0, 0.0, 0.0, 1.0, 1.0], [1.0] * 6],
    ids=["plain", "ties and zeros", "all equal"],
)
def test_wilcoxon_counts_every_sign_pattern(d: list[float]) -> None:
    values = np.array(d)
    ranks = rankdata(np.abs(values))[values != 0]
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(ranks)))) @ ranks
    expected = float(
        (np.abs(patterns) >= abs(float((np.sign(values[values != 0]) * ranks).sum())) - 1e-9).mean()
    )
    assert paired.wilcoxon_p(values) == pytest.approx(expected)
    assert paired.wilcoxon_p(values) >= 0.5 ** (len(ranks) - 1) - 1e-12


def test_wilcoxon_agrees_with_scipy_where_both_are_exact_and_above_fifty() -> None:
    rng = np.random.default_rng(4)
    for n in (6, 23, 50, 80):
        d = rng.normal(0.2, 1, n)
        assert paired.wilcoxon_p(d) == pytest.approx(
            wilcoxon(d, zero_method="pratt", method="exact" if n <= 50 else "asymptotic").pvalue, rel=1e-9
        )


def test_macro_interval_is_the_bca_interval_of_a_mean() -> None:
    values = np.array(OUTLIER)
    interval, flags = paired.macro_interval(values[:, None])
    assert interval is not None and np.allclose(
        interval, bca_interval(values, list(range(10)))[0] or [], atol=1e-3
    )
    assert np.allclose(interval, [0.448, 0.905], atol=0.02) and flags == ["optimistic_ci"]
    assert paired.macro_interval(np.full((7, 3), 0.7)) == (
        [pytest.approx(0.7)] * 2,
        ["optimistic_ci", "degenerate"],
    )
    assert paired.macro_interval(values[:4, None]) == (None, [])


def test_median_interval_is_the_percentile_bootstrap() -> None:
    interval, flags = paired.median_interval(np.array(OUTLIER))
    draws = np.median(np.random.default_rng(3).choice(OUTLIER, (20_000, 10)), axis=1)
    assert (
        interval is not None
        and np.allclose(interval, np.quantile(draws, [0.025, 0.975]), atol=0.012)
        and flags == ["optimistic_ci"]
    )
    assert paired.median_interval(np.full(60, 0.2)) == ([0.2, 0.2], ["degenerate"])


def test_macro_gives_each_structure_the_same_weight() -> None:
    matrix = np.array([[1.0, 0.5], [1.0, np.nan], [1.0, np.nan]])
    assert paired.macro(matrix) == pytest.approx(0.75)
    counts = paired.patient_counts(3, 500)
    drawn = paired.resampled_macro(matrix, counts)
    # without the first patient the second structure is left out
    assert set(np.unique(drawn.round(9))) == {0.75, 1.0}


def test_rank_of_known_methods_and_ties() -> None:
    base = np.random.default_rng(0).uniform(0.5, 0.9, (12, 2))
    ranks, tau = paired.rank(np.stack([base, base + 0.05, base - 0.05]), ["a", "b", "c"])
    assert [(r.rank, r.ci95, r.wins) for r in ranks] == [
        (2.0, [2.0, 2.0], 0.0),
        (1.0, [1.0, 1.0], 1.0),
        (3.0, [3.0, 3.0], 0.0),
    ] and tau == 1.0
    ranks, tau = paired.rank(np.stack([base, base]), ["a", "b"])
    assert [(r.rank, r.wins) for r in ranks] == [(1.5, 0.5), (1.5, 0.5)] and tau is None


def test_mean_kendall_tau_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    place, columns = np.array([1.0, 2.5, 2.5, 4.0]), rng.integers(1, 4, (4, 40)).astype(float)
    expected = [kendalltau(place, column, variant="b").statistic for column in columns.T if np.ptp(column)]
    assert paired._kendall(place, columns) == pytest.approx(np.mean(expected))


# ---- the whole comparison ---------------------------------------------------------------------------------


def test_verdicts_follow_difference_and_seed_scatter(found: Comparison) -> None:
    assert one(found, "multi_decoder").verdict == "better" and one(found, "multi_decoder").separable is True
    assert one(found, "vnet").verdict == "worse"
    lucky = one(found, "multipass_unet")
    assert lucky.p < 0.05 and lucky.separable is False and lucky.verdict == "not separable"
    assert lucky.sd_method == pytest.approx(0.03, abs=0.004) and lucky.sd_reference < 0.005
    assert (
        one(found, "multi_decoder", "hd95_mm").difference < 0
        and one(found, "multi_decoder", "hd95_mm").verdict == "better"
    )


def test_every_pair_metric_and_structure_is_one_family(found: Comparison) -> None:
    assert len(found.pairs) == found.n_tests == 6 * 3 * 4
    raw = [pair.p for pair in found.pairs]
    assert [pair.p_holm for pair in found.pairs] == pytest.approx(paired.holm(raw))
    assert sum(pair.with_reference for pair in found.pairs) == 3 * 3 * 4


def test_macro_difference_is_the_difference_of_the_macros(found: Comparison) -> None:
    scores = {score.method: score for score in found.methods}
    for name in ("multi_decoder", "vnet", "multipass_unet"):
        for metric in ("dice", "nsd"):
            assert one(found, name, metric).difference == pytest.approx(
                scores[name].macro[metric] - scores["unet"].macro[metric]
            )
    runs = list(scores["vnet"].seed_macro["dice"].values())
    assert scores["vnet"].macro["dice"] == pytest.approx(np.mean(runs)) and scores["vnet"].seed_sd[
        "dice"
    ] == pytest.approx(np.std(runs, ddof=1))


def test_structure_difference_is_the_median_over_patients() -> None:
    a, b = (
        {(f"p{i}", "c", "liver"): row(value) for i, value in enumerate(values)}
        for values in ([0.5] * 6, [0.5, 0.51, 0.52, 0.54, 0.6, 0.9])
    )
    result = one(compare({"a": {0: a}, "b": {0: b}}), "b", structure="liver")
    assert result.difference == pytest.approx(0.03) and result.n == 6


def test_scans_of_one_patient_count_once() -> None:
    """Patient 0 has three scans that all speak for b: still one vote out of six."""
    a = {("p0", f"c{i}", "liver"): row(0.5) for i in range(3)} | {
        (f"p{i}", "c", "liver"): row(0.5) for i in range(1, 6)
    }
    b = {key: row(0.9 if key[0] == "p0" else 0.5 - 0.01 * int(key[0][1])) for key in a}
    found = compare({"a": {0: a}, "b": {0: b}})
    assert one(found, "b").n == found.n_patients == 6 and found.n_cases == 8
    assert one(found, "b").difference == pytest.approx((0.4 - 0.15) / 6)


def test_nobody_wins_by_missing() -> None:
    """b misses the two cases where both are far off: its HD95 is compared without them, its Dice pays for
    them.
    """
    a = {(f"p{i}", "c", "liver"): row(0.9 - 0.01 * i, hd95=50.0 if i < 2 else 5.0 + i) for i in range(10)}
    b = {
        key: row(0.0, "missed") if int(key[0][1]) < 2 else row(value["dice"], hd95=value["hd95_mm"])
        for key, value in a.items()
    }
    found = compare({"a": {0: a}, "b": {0: b}})
    distance = one(found, "b", "hd95_mm")
    assert (distance.n, distance.difference, distance.p) == (8, 0.0, 1.0)
    assert (distance.missed_reference, distance.missed_method, distance.scored_method) == (0, 2, 10)
    assert one(found, "b").difference == pytest.approx(-0.179) and one(found, "b").n == 10
    assert "it missed 2 of 10 structures entirely, a 0 of 10" in words.sentences(found)["b"]
    assert any("b 2 of 10" in line for line in words.warnings(found))


def test_distance_needs_every_run_of_both() -> None:
    a = {0: {(f"p{i}", "c", "liver"): row(0.9, hd95=4.0) for i in range(7)}}
    b = {
        seed: {key: row(0.0, "missed") if (seed, key[0]) == (1, "p3") else row(0.9, hd95=3.0) for key in a[0]}
        for seed in range(2)
    }
    assert one(compare({"a": a, "b": b}), "b", "hd95_mm").n == 6


def test_absent_and_unannotated_take_no_part() -> None:
    a = run(patients=8)
    with_more = [
        rows | {("p90", "c90", "liver"): row(None, state), ("p91", "c91", "liver"): row(None, "unannotated")}
        for rows, state in ((a, "absent"), (run(0.01, seed=1, patients=8), "hallucinated"))
    ]
    plain = compare({"a": {0: a}, "b": {0: run(0.01, seed=1, patients=8)}})
    more = compare({"a": {0: with_more[0]}, "b": {0: with_more[1]}})
    assert [score.macro for score in more.methods] == [score.macro for score in plain.methods] and [
        p.p for p in more.pairs
    ] == [p.p for p in plain.pairs]


def test_other_cases_are_an_error_that_names_them() -> None:
    a = run(patients=6)
    for changed in (
        {key: value for key, value in a.items() if key[1] != "c04"},
        {key: row(None, "absent") if key[1] == "c04" else value for key, value in a.items()},
    ):
        with pytest.raises(IntegrityError, match="c04"):
            compare({"a": {0: a}, "b": {0: changed}})
    with pytest.raises(UsageError, match="NOTHING_TO_COMPARE"):
        compare({"a": {0: a}, "b": {}})
    with pytest.raises(UsageError, match="NOTHING_TO_COMPARE"):
        compare({"a": {0: {key: row(None, "absent") for key in a}}})


@pytest.mark.parametrize(
    ("patients", "verdict"), [(4, "n too small"), (5, "n too small"), (6, "no difference shown")]
)
def test_few_patients_show_nothing(patients: int, verdict: str) -> None:
    found = compare({"a": {0: run(patients=patients)}, "b": {0: run(0.05, seed=1, patients=patients)}})
    pair = one(found, "b")
    assert (
        pair.verdict == verdict
        and (pair.p is None) == (patients < 6)
        and (pair.ci95 is None) == (patients < 5)
    )
    assert (
        "too few" if patients < 6 else f"no difference that these {patients} patients could show"
    ) in words.sentences(found)["b"]
    assert any(
        "however large" in line or "no test can find anything" in line for line in words.warnings(found)
    )


def test_a_method_equals_itself() -> None:
    found = compare({"a": three_seeds(), "b": three_seeds()})
    assert {pair.p_holm for pair in found.pairs} == {1.0} and {pair.verdict for pair in found.pairs} == {
        "no difference shown"
    }
    assert [rank.wins for rank in found.ranking] == [0.5, 0.5] and found.kendall_tau is None
    alone = compare({"a": {0: run()}})
    assert alone.pairs == [] and list(words.sentences(alone)) == ["a"] and alone.kendall_tau is None


# ---- words ------------------------------------------------------------------------------------------------


def test_sentences_say_what_was_shown(found: Comparison) -> None:
    text = words.sentences(found)
    assert re.fullmatch(
        r"multi_decoder is better than unet by 0\.0\d\d Dice \(95 % CI .* to .*; p = 0\.00\d+, "
        r"corrected for 72 tests\); it is also better in NSD .* and HD95 .*\.",
        text["multi_decoder"],
    )
    assert text["vnet"].startswith("vnet is worse than unet by") and "missed" in text["vnet"]
    assert (
        "not separable" in text["multipass_unet"] and "is better" not in text["multipass_unet"].split(";")[0]
    )
    assert text["unet"].startswith("unet is what the others are compared with")


def test_uncorrected_finding_and_single_run_are_called_by_name() -> None:
    """A small consistent gain among many tests: p alone is below 0.05, corrected it is not."""
    methods = {
        "a": {0: run(patients=7)},
        **{f"m{i}": {0: run(0.0, seed=40 + i, patients=7, scatter=0.03)} for i in range(4)},
        "b": {0: run(0.02, seed=1, patients=7)},
    }
    found = compare(methods)
    assert one(found, "b").p < 0.05 <= one(found, "b").p_holm
    assert (
        "does not survive the correction" in words.sentences(found)["b"]
        and "one training run each" in words.sentences(found)["b"]
    )
    assert any("Trained once" in line for line in words.warnings(found))


def test_a_loss_on_one_structure_stands_beside_the_gain() -> None:
    ours, theirs = three_seeds(patients=20), three_seeds(0.05, offset=10, patients=20)
    for rows in theirs.values():
        rows |= {
            key: row(value["dice"] - 0.09, hd95=value["hd95_mm"])
            for key, value in rows.items()
            if key[2] == "liver"
        }
    assert "; but on liver it is worse" in words.sentences(compare({"a": ours, "b": theirs}))["b"]


# ---- page -------------------------------------------------------------------------------------------------

NASTY = "<b>&me</b>"


def record_of(found: Comparison) -> dict[str, Any]:
    """A made-up record; every other method has no costs."""
    names = [score.method for score in found.methods]
    costs = {
        name: {
            "parameters": 2_765_067,
            "peak_memory_gb": 1.25,
            "seconds_per_step": 0.41,
            "steps": 580,
            "seconds_per_scan": 3.2,
            "hd95_imputed_mm": 9.5,
        }
        for name in names[::2]
    }
    return {
        "format": page.FORMAT,
        "version": page.VERSION,
        "synthetic": True,
        "facts": {"Task": "abdomen, synthetic", "Note": NASTY},
        "statistics": words.described(found),
        "costs": costs,
        "topology": {names[0]: {"cldice": 0.91}},
        "warnings": ["vnet ended early."],
    }


@pytest.fixture(scope="module")
def written(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    page.write_comparison(record_of(found), folder)
    return folder


@pytest.mark.pictures
def test_files_of_a_comparison(found: Comparison, written: Path) -> None:
    assert json.loads((written / "comparison.json").read_text()) == json.loads(json.dumps(record_of(found)))
    with (written / "comparison.csv").open(newline="") as stream:
        methods = list(csv.DictReader(stream))
    assert [line["method"] for line in methods] == ["unet", "multi_decoder", "vnet", "multipass_unet"]
    assert (
        float(methods[0]["dice"]) == found.methods[0].macro["dice"]
        and methods[0]["cldice"] == "0.91"
        and methods[1]["cldice"] == methods[1]["parameters"] == ""
    )
    with (written / "comparison_pairs.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(found.pairs)
    with Image.open(written / "comparison.png") as image:
        assert image.width >= 1000 and image.height >= 300
    assert not list(written.glob(".tmp-*"))


def test_page_is_one_safe_file_with_the_answers(found: Comparison, written: Path) -> None:
    text = (written / "comparison.html").read_text(encoding="utf-8")
    elements = Elements(text)
    assert "<b>&me" not in text and NASTY in " ".join(elements.words)
    for tag, attributes in elements.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for key in ("src", "href"):
            if key in attributes:
                assert str(attributes[key]).startswith(("data:image/", "#"))
    plain = " ".join(" ".join(elements.words).split())
    for line in [
        *words.sentences(found).values(),
        *words.warnings(found),
        "vnet ended early.",
        "SYNTHETIC DATA",
        "2.77 M",
        "not a medical device",
    ]:
        assert line in plain, line
    assert not re.search(r"\b(nan|None|null|inf)\b", plain)
    assert text.count('class="group not-separable"') >= 1


@pytest.mark.parametrize(
    "scores",
    [{"a": {0: run(patients=3)}}, {"a": {0: run(patients=3)}, "b": {0: run(seed=1, patients=3)}}],
    ids=["one method", "three patients"],
)
def test_page_of_too_little(tmp_path: Path, scores: dict[str, Any]) -> None:
    page.write_comparison({"statistics": words.described(compare(scores))}, tmp_path)
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert ("only one method" in text) == (len(scores) == 1) and "SYNTHETIC" not in text
    assert ("n too small" in text.split('id="pairs"')[1].split("</table>")[0].split("<ul")[0]) == (
        len(scores) == 2
    )


def test_report_and_comparison_share_one_look(written: Path) -> None:
    look = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert look.strip() in (written / "comparison.html").read_text(encoding="utf-8")
    assert "<style>" not in (TEMPLATES / "comparison.html.j2").read_text(encoding="utf-8")
