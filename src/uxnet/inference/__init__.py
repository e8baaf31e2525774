"""From a scan to its labels: windows, the engines that compute them, the stitching, and cohorts of files."""
