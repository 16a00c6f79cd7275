"""How good a prediction is: NumPy arrays in, Python floats out. No files, no torch."""
