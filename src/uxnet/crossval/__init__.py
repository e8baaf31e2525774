"""Several networks on the same folds, in units that can be resumed."""
