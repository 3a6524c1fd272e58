"""Finding the threads of an image: in process lists, the CID table, the processors, physical memory, a dump header."""
