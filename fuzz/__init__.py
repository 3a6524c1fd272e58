"""Hostile memory by the thousand: images that are damaged at random, and what an audit of each must still promise."""
