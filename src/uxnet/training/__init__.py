"""Training: the run, the loop, losses, checkpoints. `engine.py` is the one file that knows Fabric."""
