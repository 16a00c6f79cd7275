"""Names and ids of the multi-organ label map, in the spelling of the AbdomenAtlas data set."""

from __future__ import annotations

STRUCTURES = (
    "bladder",
    "prostate",
    "rectum",
    "colon",
    "intestine",
    "femur_left",
    "femur_right",
    "hip_left",
    "hip_right",
    "sacrum",
    "lumbar_vertebrae",
    "aorta",
    "postcava",
    "iliac_artery_left",
    "iliac_artery_right",
    "iliac_vein_left",
    "iliac_vein_right",
    "uterus",
)
IDS = {name: number for number, name in enumerate(STRUCTURES, start=1)}
TARGETS = ("prostate", "bladder", "rectum")  # what the embedded default learns
SIDES = {1: "left", -1: "right"}
