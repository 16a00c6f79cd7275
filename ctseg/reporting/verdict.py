"""What works, what fails and how sure one can be, in plain words: every clause follows from a number of the
evaluation.

A structure is said to work when its mean Dice is at least 0.70, called good agreement since Zijdenbos et
al. (1994), and it was neither missed nor hallucinated in any test scan. The page states the rule. Small
structures can be of use below it.
"""

from __future__ import annotations

import dataclasses

from ctseg.reporting.page import interval_text, listed, plural
from ctseg.reporting.results import Results, dig
from ctseg.scoring.statistics import RELIABLE_N, SMALLEST_N
from ctseg.scoring.summary import lowest

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

    n: scans; ci95 of the mean Dice, optimistic where it rests on few patients.
    """

    name: str
    mean: float
    ci95: list[float] | None
    optimistic: bool
    n: int
    missed: int
    hallucinated: int
    absent: int

    @property
    def works(self) -> bool:
        """By the rule of this module."""
        return self.tag == "works"

    @property
    def tag(self) -> str:
        """ "works", or what speaks against it, in a few words."""
        if self.missed == self.n:
            return "never found"
        faults = {
            f"below {GOOD_DICE:.2f}": round(self.mean, 3) < GOOD_DICE,  # as it is printed
            "missed": self.missed,
            "hallucinated": self.hallucinated,
        }
        return ", ".join(fault for fault, there in faults.items() if there) or "works"


def structures(found: Results) -> list[Structure]:
    """The structures with a score, best mean first."""
    result = []
    for name in dig(found.summary, "headline", "structures") or []:
        dice, counts = found.summary[f"{name}_dice"], found.summary["presence"][name]
        states = [counts[f"n_{state}"] for state in ("missed", "hallucinated", "absent")]
        optimistic = "optimistic_ci" in dice["flags"]
        result.append(Structure(name, dice["mean"], dice["ci95"], optimistic, dice["n"], *states))
    return sorted(result, key=lambda one: (-one.mean, one.name))


def better_than_nothing(found: Results) -> bool | None:
    """Whether the headline is above that of the all-background predictor; None where that is not known."""
    better: bool | None = dig(found.summary, "baselines", "all_background", "better_than_baseline")
    return better


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
    cases, patients = (len({row[key] for row in found.rows}) for key in ("case_id", "patient_id"))
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
    which = f"{len(good)} of {plural(len(scored), 'structure')}"
    if len(good) == len(scored):
        which = f"All {len(good)} structures"
    if len(good) > WITH_INTERVAL:
        intervals = (
            "intervals in the table" if any(one.ci95 for one in good) else "too few scans for intervals"
        )
        return (
            f"{which}, mean Dice from {good[-1].mean:.3f} to {good[0].mean:.3f}: "
            f"{listed([one.name for one in good], NAMED)} ({intervals})."
        )
    each = [
        f"{one.name} {one.mean:.3f} "
        f"({f'95 % CI {interval_text(one.ci95)}' if one.ci95 else 'too few for an interval'}, n = {one.n})"
        for one in good
    ]
    return f"{f'{which}: ' if len(scored) > 1 else ''}{listed(each)}."


def _fails(found: Results, scored: list[Structure]) -> str:
    bad = [_fault(one) for one in sorted(scored, key=lambda one: one.mean) if not one.works]
    more = [f"and {plural(len(bad) - NAMED, 'more structure')}"] if len(bad) > NAMED else []
    text = f"{'; '.join(bad[:NAMED] + more)}. " if bad else "No structure by the rule below. "
    presence = found.summary["presence"]
    hallucinated = [
        f"{name} (in {plural(count, 'scan')})"
        for name in found.summary["headline"]["structures_without_reference"]
        if (count := presence[name]["n_hallucinated"])
    ]
    if hallucinated:
        text += f"Marked although no test reference shows it: {listed(hallucinated, NAMED)}. "
    (worst,) = lowest(found.rows, "dice", ("structure", "case_id", "state", "dice"), 1)
    text += (
        f"The lowest single result is {worst['structure']} in scan {worst['case_id']}: "
        f"{'missed, ' if worst['state'] == 'missed' else ''}Dice {worst['dice']:.3f}."
    )
    measured = [row for row in found.scored if row["hd95_mm"] is not None]
    if not measured:
        return text
    # a mean Dice can hide it
    far = max(measured, key=lambda row: (row["hd95_mm"], row["structure"], row["case_id"]))
    cause = ": a stray piece or a missing end, to which Dice is nearly blind"
    return (
        f"{text} The farthest error is at {far['structure']} in scan {far['case_id']}: "
        f"HD95 {far['hd95_mm']:.1f} mm{cause if far['hd95_mm'] >= FAR_MM else ''}."
    )


def _fault(one: Structure) -> str:
    faults = [f"mean Dice {one.mean:.3f}"]
    if one.missed == one.n:
        faults = [f"never found ({plural(one.n, 'scan')})"]
    elif one.missed:
        faults.append(f"missed in {one.missed} of {plural(one.n, 'scan')}")
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
    n = len({row["patient_id"] for row in found.scored})
    lines.append(
        f"{plural(n, 'test patient')}: an indication, not a measurement."
        if n < FEW_PATIENTS
        else f"{plural(n, 'test patient')} were scored."
    )
    if all(one.ci95 is None for one in scored):
        lines.append(f"Fewer than {SMALLEST_N} per structure give no confidence interval.")
    elif any(one.optimistic for one in scored):
        lines.append(
            f"The intervals rest on fewer than {RELIABLE_N} patients and are narrower than they should be."
        )
    uncertain = [one.name for one in scored if one.works and one.ci95 and one.ci95[0] < GOOD_DICE]
    if uncertain:
        lines.append(
            f"For {listed(uncertain, 3)} the interval reaches below {GOOD_DICE:.2f}: that "
            f"{'it works' if len(uncertain) == 1 else 'they work'} is not certain."
        )
    lines += _not_scored(found)
    seed = found.history["settings"]["train"]["seed"]
    lines.append(
        f"One training run (seed {seed}) and one split: how much another run would differ was not measured."
    )
    return lines


def _not_scored(found: Results) -> list[str]:
    lines = []
    for state, word in (("unannotated", "not annotated"), ("unevaluable", "cut off by the edge of the scan")):
        places = [
            f"{name} in {plural(count, 'scan')}"
            for name, counts in found.summary["presence"].items()
            if (count := counts[f"n_{state}"])
        ]
        if places:
            lines.append(f"Not scored, because {word}: {listed(places, NAMED)}.")
    without = found.summary["headline"]["structures_without_reference"]
    if without:
        lines.append(
            f"No test reference shows {listed(without, NAMED)}: whether the model finds "
            f"{'it' if len(without) == 1 else 'them'} is not known."
        )
    missing = dig(found.summary, "settings", "n_missing_predictions")
    if missing:
        lines.append(
            f"{plural(missing, 'prediction')} {'was' if missing == 1 else 'were'} missing; "
            f"everything in {'it' if missing == 1 else 'them'} counts as missed."
        )
    return lines
