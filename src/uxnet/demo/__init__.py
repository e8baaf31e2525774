"""The demo: phantoms, a training, and a baseline that knows intensity alone."""
