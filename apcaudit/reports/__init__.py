"""The report: one HTML file that shows what a folder of results holds."""
