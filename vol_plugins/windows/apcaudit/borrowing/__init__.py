"""Structures for a kernel whose PDB lacks them: taken from a symbol file that ships, checked, and said so."""
