"""User space: what a process maps where a user APC would run, read from VADs, page tables and images."""
