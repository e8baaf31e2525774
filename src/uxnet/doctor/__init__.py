"""Whether this machine computes right: every layer against float64."""
