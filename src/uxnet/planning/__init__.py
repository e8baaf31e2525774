"""A recipe for a dataset, and what a training step of it takes."""
