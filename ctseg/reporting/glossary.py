"""Every term that the report uses, in one line for people who do not know it."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Term:
    """A term and what it means. anchor: the id of its line on the page."""

    name: str
    line: str

    @property
    def anchor(self) -> str:
        """Letters, digits and hyphens only."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


GROUPS: tuple[tuple[str, tuple[Term, ...]], ...] = (
    (
        "Reading the scores",
        (
            Term(
                "reference",
                "What a person or another program marked in the scan; the answer that the model is compared with. It has errors of its own.",
            ),
            Term("structure", "One thing that the model marks, for example an organ or a bone."),
            Term("n", "How many test scans a number rests on: those whose reference shows the structure."),
            Term(
                "Dice",
                "How much of two volumes coincides: 0 is no overlap, 1 is identical. A few voxels off cost more in a small structure.",
            ),
            Term(
                "IoU",
                "Intersection over union: the shared volume divided by the joint volume; another way to state the overlap, always at or below Dice.",
            ),
            Term("precision", "The share of what the model marked that is right."),
            Term("recall", "The share of the reference that the model marked."),
            Term(
                "mean",
                "The average. It counts only scans whose reference shows the structure; finding nothing where nothing is earns no points.",
            ),
            Term("median", "The middle value: half of the scans are better, half are worse."),
            Term("5 %", "The 5th percentile: one scan in twenty is worse than this."),
            Term(
                "CI",
                "95 % confidence interval: the range in which the mean for patients like these probably lies. * Fewer than 50 patients: the true range is wider.",
            ),
            Term("voxel", "One element of the scan, the three-dimensional pixel."),
        ),
    ),
    (
        "Distances between surfaces",
        (
            Term(
                "HD",
                "Hausdorff distance: the farthest that any point of one surface lies from the other, in mm; one stray voxel decides it.",
            ),
            Term(
                "HD95",
                "95 % of each surface lies nearer than this to the other one, in mm; smaller is better.",
            ),
            Term(
                "imputed",
                "A missed structure has no distance; here it counts as the diagonal of the whole image, so that missing is never rewarded.",
            ),
            Term(
                "where found",
                "Missed structures are left out of this mean, so it improves by missing: never read it alone.",
            ),
            Term(
                "NSD",
                "Normalised surface Dice: the share of both surfaces that lies within a tolerance of the other one; 1 is best.",
            ),
            Term(
                "tolerance",
                "The distance in mm that still counts as right in the NSD; it stands beside every NSD.",
            ),
            Term(
                "ASSD",
                "Average symmetric surface distance: how far apart the two surfaces are on average, in mm.",
            ),
            Term("MASD", "Mean average surface distance: as ASSD, with both directions weighted the same."),
        ),
    ),
    (
        "What became of a structure in a scan",
        (
            Term("present", "The reference shows it and the model marked something."),
            Term("missed", "The reference shows it and the model marked nothing; counts as Dice 0."),
            Term("hallucinated", "The model marked it where the reference shows none."),
            Term("absent", "Neither the reference nor the model shows it; counted, never scored."),
            Term("not annotated", "Nobody looked for it in this scan, so it is not scored."),
            Term("cut off", "The scan ends inside the structure, so it is not scored."),
            Term(
                "predicting nothing",
                "A model that marks no voxel at all, scored by the same program: what any useful model must beat.",
            ),
        ),
    ),
    (
        "How far the model knows its errors",
        (
            Term(
                "confidence",
                "How sure the model was: the agreement (Dice) of several predictions of the same scan, 0 to 1. It is made without the reference.",
            ),
            Term(
                "calibration",
                "Whether a stated probability is met: of all voxels called 80 % certain, 80 % should be right.",
            ),
            Term(
                "ECE",
                "Expected calibration error: the mean gap between stated probability and observed frequency; 0 is best.",
            ),
            Term(
                "Brier", "Brier score: the mean squared gap between stated probability and truth; 0 is best."
            ),
            Term(
                "NLL",
                "Negative log-likelihood: as the Brier score, but certain errors cost far more; 0 is best.",
            ),
            Term(
                "boundary band",
                "The zone of some voxels around both surfaces, where the decisions are hard. Far from it everything is easy and hides bad calibration.",
            ),
            Term(
                "too sure by",
                "Mean stated probability minus observed frequency; above 0 the model promises more than it holds.",
            ),
            Term(
                "AURC",
                "Area under the risk-coverage curve: mean error when the least certain scans are set aside one by one; smaller is better.",
            ),
            Term(
                "Spearman",
                "Rank correlation, here of confidence and Dice: 1, the surer scan is always the better one; 0, confidence tells nothing.",
            ),
        ),
    ),
    (
        "Tubes and trees",
        (
            Term(
                "TD",
                "Tree length detected: the share of the reference's centre line that lies in the prediction. It grows by leaking: read it with precision.",
            ),
            Term("BD", "Branches detected: the share of branches found over at least 80 % of their length."),
            Term(
                "largest piece",
                "Only the largest connected piece of the prediction counts; the difference to all pieces is what breaks cost.",
            ),
            Term("leakage", "What was marked outside the reference, relative to the reference's volume."),
            Term("breaks", "Into how many pieces the tree fell, less one."),
            Term(
                "clDice",
                "Centre-line Dice: overlap of the centre line of each mask with the other mask; tells whether a tube is connected.",
            ),
            Term(
                "Betti error",
                "Wrong numbers of pieces, tunnels and cavities, added up; 0 means the right topology.",
            ),
        ),
    ),
    (
        "Comparing runs",
        (
            Term(
                "difference",
                "The mean Dice over all structures of that run minus that of the run it is compared with, on the same patients.",
            ),
            Term(
                "p corrected",
                "The chance of a difference this large if there were none, corrected (Holm) for the number of questions asked; below 0.05 counts.",
            ),
            Term(
                "seed SD",
                "Standard deviation between training runs that differ in nothing but the random seed.",
            ),
            Term(
                "split",
                "Which patients train, which choose the weights (validation) and which are kept for the test.",
            ),
            Term("seed", "The number that fixes all random choices of a run."),
        ),
    ),
    (
        "Training",
        (
            Term("epoch", "One round of training; the validation scans are scored after some of them."),
            Term(
                "loss", "What the training makes small; its value has no meaning by itself, only its course."
            ),
            Term("learning rate", "How large the steps of the training are."),
            Term("HU", "Hounsfield unit, the grey value of CT: air −1000, water 0, bone several hundred."),
            Term(
                "hash",
                "A short fingerprint of a file or a list: the same fingerprint means the same content.",
            ),
            Term("weights", "The numbers that the network learned; they are the model."),
        ),
    ),
)
_BY_NAME = {term.name.lower(): term for _, terms in GROUPS for term in terms}


def find(name: str) -> Term:
    """The term of that name, in any case of letters. KeyError when it has no line."""
    return _BY_NAME[name.lower()]
