"""Walking the APC lists of threads, and finding queued APCs that no list holds."""
