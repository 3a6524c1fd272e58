"""Walks the kernel stacks of threads and names their frames."""
