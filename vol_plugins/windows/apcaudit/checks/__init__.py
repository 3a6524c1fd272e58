"""The findings: small pure functions over a thread, its lists and its APCs, and the delivery rules they rest on."""
