"""Benchmarks: windows.apcaudit, vol's own plugins and the plain alternatives side by side, as whole processes."""
