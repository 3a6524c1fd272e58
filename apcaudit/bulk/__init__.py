"""Many images: scanning them on all cores or a cluster, and asking questions across the results."""
