"""The task "heart_like"."""
