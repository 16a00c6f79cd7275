"""What works, what fails and how sure one can be, in plain words: every clause follows from a number of the
evaluation.

A structure is said to work when its mean Dice is at least 0.70, called good agreement since Zijdenbos et
al. (1994), and it was neither missed nor hallucinated in any test scan. The page states the rule. Small
structures can be of use below it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ctseg.reporting.page import interval_text, listed, plural, text_of
from ctseg.reporting.pictures.plots import dice_of, lowest_first, number, with_reference
from ctseg.reporting.results import Results, dig, patient_of
from ctseg.scoring.statistics import RELIABLE_N, SMALLEST_N

GOOD_DICE = 0.70
FAR_MM = 30.0  # an HD95 of this much is no inexact outline
FEW_PATIENTS = 10  # below it the test is called an indication
NAMED, WITH_INTERVAL = 6, 4  # names in a list; structures that are given with their interval
NOT_BETTER = "NOT BETTER THAN PREDICTING NOTHING"
RULE = (
    f"“Works” means here: mean Dice of at least {GOOD_DICE:.2f}, in no test scan missed and in none "
    "hallucinated. What a use needs can be more or less than that."
)


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the evaluation says of one structure that some test reference shows.

    n: scans; ci95 of the mean Dice.
    """

    name: str
    mean: float
    ci95: tuple[float, float] | None
    optimistic: bool
    n: int
    missed: int
    hallucinated: int
    absent: int

    @property
    def works(self) -> bool:
        """By the rule of this module."""
        return self.good and not self.missed and not self.hallucinated

    @property
    def good(self) -> bool:
        """Whether the mean, as it is printed, reaches the rule's."""
        return round(self.mean, 3) >= GOOD_DICE

    @property
    def tag(self) -> str:
        """ "works", or what speaks against it, in a few words."""
        if self.missed == self.n:
            return "never found"
        faults = (
            [f"below {GOOD_DICE:.2f}"] * (not self.good)
            + ["missed"] * bool(self.missed)
            + ["hallucinated"] * bool(self.hallucinated)
        )
        return ", ".join(faults) or "works"


def structures(found: Results) -> list[Structure]:
    """The structures with a score, best mean first."""
    names = dig(found.summary, "headline", "structures") or []
    result = []
    for name in names:
        dice, counts = (found.summary.get(f"{name}_dice") or {}, dig(found.summary, "presence", name) or {})
        if dice.get("mean") is None:
            continue
        interval = dice.get("ci95")
        result.append(
            Structure(
                str(name),
                float(dice["mean"]),
                tuple(interval) if interval else None,
                "optimistic_ci" in (dice.get("flags") or []),
                int(dice.get("n") or 0),
                *(int(counts.get(f"n_{state}") or 0) for state in ("missed", "hallucinated", "absent")),
            )
        )
    return sorted(result, key=lambda one: (-one.mean, one.name))


def better_than_nothing(found: Results) -> bool | None:
    """Whether the headline is above that of the all-background predictor; None where that is not known."""
    baselines = dig(found.summary, "baselines", "all_background") or {}
    return baselines.get("better_than_baseline")


def paragraphs(found: Results) -> list[tuple[str, str]]:
    """(lead, text) of the verdict at the top of the page, in order."""
    scored = structures(found) if found.evaluated else []
    if not scored:
        return [("Result", sentence(found))]
    return [
        ("Result", sentence(found)),
        ("What works", _works(scored)),
        ("What fails or falls short", _fails(found, scored)),
        ("How sure", " ".join(_doubts(found, scored))),
    ]


def sentence(found: Results) -> str:
    """The whole result in one or two sentences, also for the terminal."""
    if not found.evaluated:
        return (
            "There is no test result yet: the model has been trained, but not evaluated on scans it "
            "has not seen."
        )
    macro = dig(found.summary, "headline", "macro_dice")
    scored = structures(found)
    if macro is None or not scored:
        return "The test references hold none of the structures, so nothing can be said about the model."
    cases = len({row["case_id"] for row in found.rows})
    patients = len({patient_of(row) for row in found.rows})
    who = plural(cases, "synthetic test scan" if found.synthetic else "test scan") + (
        f" of {plural(patients, 'patient')}" if patients != cases else ""
    )
    text = f"On {who} kept out of training the mean Dice (overlap with the reference, 0 to 1) is {macro:.3f}"
    if len(scored) > 1:
        text += (
            f" over {plural(len(scored), 'structure')}: lowest {scored[-1].name} {scored[-1].mean:.3f}, "
            f"highest {scored[0].name} {scored[0].mean:.3f}"
        )
    else:
        text += f" for {scored[0].name}"
    missed, all_scored = sum(one.missed for one in scored), sum(one.n for one in scored)
    text += (
        f". Of {plural(all_scored, 'structure')} shown in these scans {missed or 'none'} "
        f"{'was' if missed < 2 else 'were'} missed entirely."
    )
    if better_than_nothing(found) is False:
        text += f" {NOT_BETTER}: marking no voxel at all scores as high."
    return text


def _works(scored: list[Structure]) -> str:
    good = [one for one in scored if one.works]
    if not good:
        return (
            f"No structure reaches a mean Dice of {GOOD_DICE:.2f} without being missed or hallucinated "
            "somewhere."
        )
    which = (
        ""
        if len(scored) == 1
        else f"All {len(good)} structures"
        if len(good) == len(scored)
        else f"{len(good)} of {plural(len(scored), 'structure')}"
    )
    if len(good) > WITH_INTERVAL:
        intervals = (
            "intervals in the table" if any(one.ci95 for one in good) else "too few scans for intervals"
        )
        return (
            f"{which}, mean Dice from {good[-1].mean:.3f} to {good[0].mean:.3f}: "
            f"{listed([one.name for one in good], NAMED)} ({intervals})."
        )
    return f"{which}{': ' if which else ''}{listed([_with_interval(one) for one in good])}."


def _with_interval(one: Structure) -> str:
    interval = f"95 % CI {interval_text(one.ci95)}" if one.ci95 else "too few for an interval"
    return f"{one.name} {one.mean:.3f} ({interval}, n = {one.n})"


def _fails(found: Results, scored: list[Structure]) -> str:
    bad = sorted((one for one in scored if not one.works), key=lambda one: one.mean)
    more = [f"and {plural(len(bad) - NAMED, 'more structure')}"] if len(bad) > NAMED else []
    text = (
        f"{'; '.join([*(_fault(one) for one in bad[:NAMED]), *more])}. "
        if bad
        else "No structure by the rule below. "
    )
    hallucinated_only = [f"{name} (in {plural(count, 'scan')})" for name, count in _only_hallucinated(found)]
    if hallucinated_only:
        text += f"Marked although no test reference shows it: {listed(hallucinated_only, NAMED)}. "
    lowest = lowest_first(found.rows)[0]
    return (
        f"{text}The lowest single result is {lowest['structure']} in scan {lowest['case_id']}: "
        f"{'missed, ' if lowest['state'] == 'missed' else ''}Dice "
        f"{dice_of(lowest):.3f}.{_farthest(found)}"
    )


def _farthest(found: Results) -> str:
    """A sentence on the largest HD95, which a mean Dice can hide; nothing where no structure was found."""
    distances = [
        (value, str(row["structure"]), str(row["case_id"]))
        for row in with_reference(found.rows)
        if (value := number(row, "hd95_mm")) is not None
    ]
    if not distances:
        return ""
    value, structure, case = max(distances)
    cause = ": a stray piece or a missing end, to which Dice is nearly blind" if value >= FAR_MM else ""
    return f" The farthest error is at {structure} in scan {case}: HD95 {value:.1f} mm{cause}."


def _only_hallucinated(found: Results) -> list[tuple[str, int]]:
    """Structures without any reference that were predicted all the same."""
    presence = found.summary.get("presence") or {}
    without = dig(found.summary, "headline", "structures_without_reference") or []
    return [
        (str(name), count) for name in without if (count := int(dig(presence, name, "n_hallucinated") or 0))
    ]


def _fault(one: Structure) -> str:
    if one.missed == one.n:
        faults = [f"never found ({plural(one.n, 'scan')})"]
    else:
        faults = [f"mean Dice {one.mean:.3f}"] + (
            [f"missed in {one.missed} of {plural(one.n, 'scan')}"] if one.missed else []
        )
    if one.hallucinated:
        faults.append(
            f"hallucinated in {one.hallucinated} of {plural(one.hallucinated + one.absent, 'scan')} "
            "without it"
        )
    return f"{one.name}: {', '.join(faults)}"


# ---- how sure ---------------------------------------------------------------------------------------------


def _doubts(found: Results, scored: list[Structure]) -> list[str]:
    """Sentences on what the numbers rest on, the weightiest first."""
    lines = []
    if found.synthetic:
        lines.append(
            "The scans are synthetic: this shows that the program works and says nothing about patients."
        )
    lines.append(_on_patients(found, scored))
    uncertain = [one.name for one in scored if one.works and one.ci95 and one.ci95[0] < GOOD_DICE]
    if uncertain:
        lines.append(
            f"For {listed(uncertain, 3)} the interval reaches below {GOOD_DICE:.2f}: that "
            f"{'it works' if len(uncertain) == 1 else 'they work'} is not certain."
        )
    lines += _not_scored(found)
    seed = dig(found.history, "settings", "train", "seed")
    lines.append(
        f"One training run{'' if seed is None else f' (seed {seed})'} and one split: how much another "
        "run would differ was not measured."
    )
    return lines


def _on_patients(found: Results, scored: list[Structure]) -> str:
    n = len({patient_of(row) for row in with_reference(found.rows)})
    text = (
        f"{plural(n, 'test patient')}: an indication, not a measurement."
        if n < FEW_PATIENTS
        else f"{plural(n, 'test patient')} were scored."
    )
    if all(one.ci95 is None for one in scored):
        return f"{text} Fewer than {SMALLEST_N} per structure give no confidence interval."
    if any(one.optimistic for one in scored):
        text += (
            f" The intervals rest on fewer than {RELIABLE_N} patients and are narrower than they should be."
        )
    return text


def _not_scored(found: Results) -> list[str]:
    presence = found.summary.get("presence") or {}
    lines = []
    for key, word in (
        ("n_unannotated", "not annotated"),
        ("n_unevaluable", "cut off by the edge of the scan"),
    ):
        which = {str(name): int(counts.get(key) or 0) for name, counts in presence.items() if counts.get(key)}
        if which:
            places = [f"{name} in {plural(count, 'scan')}" for name, count in which.items()]
            lines.append(f"Not scored, because {word}: {listed(places, NAMED)}.")
    without = [str(name) for name in dig(found.summary, "headline", "structures_without_reference") or []]
    if without:
        lines.append(
            f"No test reference shows {listed(without, NAMED)}: whether the model finds "
            f"{'it' if len(without) == 1 else 'them'} is not known."
        )
    missing = dig(found.summary, "settings", "n_missing_predictions")
    if missing:
        lines.append(
            f"{plural(int(missing), 'prediction')} {'was' if missing == 1 else 'were'} missing; "
            f"everything in {'it' if missing == 1 else 'them'} counts as missed."
        )
    return lines


def headline(found: Results) -> dict[str, Any]:
    """The big numbers at the top."""
    values = found.summary.get("headline") or {}
    return {
        "dice": text_of(values.get("macro_dice")),
        "nsd": text_of(values.get("macro_nsd")),
        "hd95": text_of(values.get("macro_hd95_imputed"), "{:.1f}"),
        "better": better_than_nothing(found),
        "without": [str(name) for name in values.get("structures_without_reference") or []],
        "n_structures": len(values.get("structures") or []),
    }
