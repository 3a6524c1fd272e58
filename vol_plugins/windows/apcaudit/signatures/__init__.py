"""YARA over driver images: rules, engines, what is scanned, and which thread a hit belongs to."""
