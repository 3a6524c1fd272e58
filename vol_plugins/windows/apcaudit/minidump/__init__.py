"""Kernel minidumps (DumpType 4) as physical memory for every plugin of vol."""
