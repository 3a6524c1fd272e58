"""The report: one HTML file that shows a folder of results."""
