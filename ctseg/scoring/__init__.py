"""Numbers from numbers: metrics, statistics, comparisons. No files, no torch."""
