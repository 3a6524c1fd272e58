"""The results of an audit: completed threads, the document with its JSON, and the table's columns."""
