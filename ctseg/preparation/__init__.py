"""Cases to tensors on the grids that networks see: the wing of preprocessing. No torch."""
