"""The `apcaudit` command: scanning many images, reports, synthetic images. Volatility never imports this package."""

__version__ = "0.1.0"
