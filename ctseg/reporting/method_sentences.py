"""A comparison in plain sentences: what was shown, what was not, and what weakens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctseg.reporting.page import interval_text, listed, p_text, plural, signed, text_of
from ctseg.scoring.comparison import (
    ALL,
    BETTER,
    LEVEL,
    NOT_SEPARABLE,
    SMALLEST_TEST_N,
    TOO_SMALL,
    WORSE,
    Comparison,
    PairTest,
)
from ctseg.scoring.statistics import RELIABLE_N

ENOUGH_SEEDS = 3
METRIC_WORDS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95"}
NAMED_STRUCTURES = 4


def described(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, with what it says in words: {.., "sentences", "warnings"}."""
    return found.record() | {"sentences": sentences(found), "warnings": warnings(found)}


def sentences(found: Comparison) -> dict[str, str]:
    """One sentence per method, the reference first."""
    first, *others = found.methods
    interval = interval_text(first.macro_ci95["dice"], form="{:.3f}")
    result = {
        first.method: f"{first.method} is what the others are compared with: "
        f"mean Dice {text_of(first.macro['dice'])}{f' (95 % CI {interval})' if interval else ''} over "
        f"{plural(len(found.structures), 'structure')} of {plural(found.n_patients, 'patient')}."
    }
    for score in others:
        rows = [pair for pair in found.pairs if pair.with_reference and pair.method == score.method]
        result[score.method] = _against_reference(rows, found.n_tests)
    return result


def _against_reference(rows: Sequence[PairTest], tests: int) -> str:
    """What the macro Dice says, then what speaks for or against it: other metrics, structures, missed ones,
    seeds.
    """
    main = next(pair for pair in rows if pair.metric == "dice" and pair.structure == ALL)
    text = _main_clause(main, tests)
    for verdict in (BETTER, WORSE):
        same = main.verdict == verdict
        others = [
            f"{METRIC_WORDS[pair.metric]} ({signed(pair.difference, pair.metric)})"
            for pair in rows
            if pair.structure == ALL and pair is not main and pair.verdict == verdict
        ]
        places = [
            pair.structure
            for pair in rows
            if pair.metric == "dice" and pair.structure != ALL and pair.verdict == verdict
        ]
        if others:
            text += f"; it is {'also ' if same else ''}{verdict} in {listed(others, NAMED_STRUCTURES)}"
        if places and not same:
            text += (
                f"; {'but ' if main.verdict in (BETTER, WORSE) else ''}on "
                f"{listed(places, NAMED_STRUCTURES)} it is {verdict}"
            )
    if main.missed_method * main.scored_reference != main.missed_reference * main.scored_method:
        text += (
            f"; it missed {main.missed_method} of {main.scored_method} structures entirely, "
            f"{main.reference} {main.missed_reference} of {main.scored_reference}"
        )
    if main.separable is None and main.verdict != TOO_SMALL:
        text += (
            ", but with one training run each nobody knows how much of it is the luck of the seed"
            if main.verdict in (BETTER, WORSE)
            else "; one training run each"
        )
    return text + "."


def _main_clause(pair: PairTest, tests: int) -> str:
    one, other = pair.method, pair.reference
    if pair.difference is None:
        return f"{one} and {other} share no patient with a score"
    side = "above" if pair.difference > 0 else "below"
    size = f"{abs(pair.difference):.3f} Dice"
    if pair.verdict == TOO_SMALL:
        return f"{one} scores {size} {side} {other}, but {plural(pair.n, 'patient')} are too few for any test"
    if pair.verdict == NOT_SEPARABLE:
        spread = max(value for value in (pair.sd_method, pair.sd_reference) if value is not None)
        return (
            f"{one} scores {size} {side} {other} ({evidence(pair, tests)}), but that is less than twice "
            f"the scatter between seeds (SD {spread:.3f}): not separable"
        )
    if pair.verdict in (BETTER, WORSE):
        return f"{one} is {pair.verdict} than {other} by {size} ({evidence(pair, tests)})"
    text = (
        f"Between {one} and {other} there is no difference that these {plural(pair.n, 'patient')} could "
        f"show: {pair.difference:+.3f} Dice ({evidence(pair, tests)})"
    )
    if pair.p is not None and pair.p < LEVEL <= (pair.p_holm or 0):
        text += f"; p {p_text(pair.p)} taken alone does not survive the correction for {tests} tests"
    return text


def evidence(pair: PairTest, tests: int) -> str:
    """ "95 % CI 0.004 to 0.020; p = 0.012, corrected for 48 tests"."""
    interval = f"95 % CI {pair.ci95[0]:+.3f} to {pair.ci95[1]:+.3f}; " if pair.ci95 else ""
    return f"{interval}p {p_text(pair.p_holm)}" + (f", corrected for {tests} tests" if tests > 1 else "")


# ---- what weakens all of it -------------------------------------------------------------------------------


def warnings(found: Comparison) -> list[str]:
    """Sentences for the top of the page."""
    lines, n = [], found.n_patients
    if n < SMALLEST_TEST_N:
        lines.append(
            f"Only {plural(n, 'test patient')}: below {SMALLEST_TEST_N} no test can find anything, so "
            "no p is given."
        )
    elif found.n_tests and found.n_tests * 0.5 ** (n - 1) >= LEVEL:
        lines.append(
            f"With {n} patients and {found.n_tests} tests at once no difference can be significant, "
            "however large: compare fewer methods or test on more patients."
        )
    if SMALLEST_TEST_N <= n < RELIABLE_N:
        lines.append(
            f"{n} test patients: the confidence intervals marked * are narrower than they should be "
            f"(below {RELIABLE_N}), and small differences cannot be found."
        )
    counts = {score.method: len(score.seeds) for score in found.methods}
    if min(counts.values()) == 1:
        lines.append("Trained once per method: how much the score changes with the seed alone is not known.")
    elif min(counts.values()) < ENOUGH_SEEDS:
        lines.append(
            f"Fewer than {ENOUGH_SEEDS} training runs per method: the scatter over the seeds is only a "
            "rough figure."
        )
    if len({tuple(sorted(score.seeds)) for score in found.methods}) > 1:
        lines.append(
            "The methods were not trained with the same seeds "
            f"({', '.join(f'{name}: {count}' for name, count in counts.items())} runs)."
        )
    if found.structures_without_reference:
        lines.append(
            f"Without any reference and therefore left out: {', '.join(found.structures_without_reference)}."
        )
    missing = [f"{score.method} {score.missed} of {score.scored}" for score in found.methods if score.missed]
    if missing:
        lines.append(
            f"Structures missed entirely: {', '.join(missing)}. They count 0 in Dice and NSD and have "
            "no HD95, which is therefore compared only where every run of both methods found the "
            "structure."
        )
    return lines
