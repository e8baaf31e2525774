"""The way out and the way back: from a scan to the network's grid and range."""
