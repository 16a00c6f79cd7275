"""The task "abdomen"."""
