"""Many scans in one call: found, planned, segmented, committed, summarised."""
