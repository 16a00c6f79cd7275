"""Plots, slices, surfaces and films."""
