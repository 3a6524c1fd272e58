"""LiME images that end before their headers say, as physical memory as far as they go."""
