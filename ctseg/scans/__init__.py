"""What comes in: scans, labels, their geometry, and the grids the networks see. No torch here."""
