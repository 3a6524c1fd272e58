"""Which driver holds an address: loaded and unloaded modules, and the names in them."""
