"""Array and affine in, array and affine out: grids, resampling, distances, probabilities. Opens no file."""
