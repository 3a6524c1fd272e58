"""Finds the drivers in an image (loaded, unloaded, hidden) and names the code in them."""
