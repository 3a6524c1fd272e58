"""Parsers of formats that need no image: PE, symbol and dump files, lists, text. Standard library only."""
