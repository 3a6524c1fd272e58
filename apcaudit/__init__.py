"""The `apcaudit` command: scenes to images, many images to one report. Volatility never imports this package."""

__version__ = "0.1.0"
