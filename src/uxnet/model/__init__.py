"""Model files, their cards, and the bundled models."""
