"""The embedded data: synthetic patients, pelvis and lower abdomen, drawn from a seeded shape model and written as
raw scans. Everything made from them says "synthetic"; they stand for no real person.

`write_cohort` writes them to disk, `draw_patient` returns one in memory. Who reads this code should begin with
`drawing.py` (order of drawing), then `patients.py` (what varies) and `implicit.py` (how shapes become voxels).
"""

from ctseg.scans.phantom.cohort import draw_patient, write_cohort

__all__ = ["draw_patient", "write_cohort"]
