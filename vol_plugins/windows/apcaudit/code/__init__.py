"""What the code at a thread's start address does: its instructions, the calls in them, and what follows for APCs."""
