"""Masks on disk to scores on disk: what belongs together is found, checked and scored."""
