"""The embedded data: synthetic patients, drawn from seeded shape models and written as raw scans. Everything
made from them says "synthetic"; they stand for no real person.

`write_cohort` writes the cohort of a task to disk, `draw_patient` returns one patient in memory, `tasks.py`
lists the tasks. Who reads this code should begin with the task's module (order of drawing), then `people.py`
and `people.toml` (what varies) and `implicit.py` (how shapes become voxels).
"""

from ctseg.anatomy.cohort import draw_patient, write_cohort
from ctseg.anatomy.tasks import DEFAULT, TASKS, load_task

__all__ = ["DEFAULT", "TASKS", "draw_patient", "load_task", "write_cohort"]
