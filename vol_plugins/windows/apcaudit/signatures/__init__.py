"""Scanning drivers, and code outside of them, with YARA rules."""
