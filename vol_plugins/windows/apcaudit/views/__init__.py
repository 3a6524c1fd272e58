"""Every view of threads and KAPCs beside the process lists, and what it means that one misses something."""
