"""The task "airway"."""
