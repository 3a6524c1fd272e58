"""Crash dumps, minidumps and LiME images: their headers, the bugcheck, and parts that the file lacks."""
