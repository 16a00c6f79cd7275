"""What comes in: scans, labels and guides, to tensors on the grids that networks see. No torch."""
