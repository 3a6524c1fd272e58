"""Reads one image: virtual and physical memory, symbols, kernel structures and processes."""
