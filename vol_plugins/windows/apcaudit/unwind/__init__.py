"""Unwinds kernel stacks from bytes and function tables. Standard library only."""
