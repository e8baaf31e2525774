"""Images made of label maps."""
