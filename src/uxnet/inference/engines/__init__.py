"""What computes a network: OpenVINO or torch, in which precision."""
