"""The tasks "pelvis" and "pelvic_bones"."""
