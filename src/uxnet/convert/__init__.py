"""Weights from elsewhere as models: read from an untrusted file in a process of its own, recognised, checked, written."""
