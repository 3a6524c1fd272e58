"""Attributing APCs: what queued them, as far as the image shows it."""
