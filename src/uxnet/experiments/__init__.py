"""Experiments: what is put together from all the other rooms. Cross-validation, baselines, the demo."""
