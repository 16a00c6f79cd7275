"""From a folder to cases: names, readers, splits, and an adapter per data-set layout."""
