"""Synthetic Windows kernels: scenes declared in Python, built into memory images that Volatility reads."""
