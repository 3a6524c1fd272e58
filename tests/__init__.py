"""Tests of the plugin and of the command, one module for each of theirs."""
