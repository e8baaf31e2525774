"""Gradients and norms of our own for CPUs."""
