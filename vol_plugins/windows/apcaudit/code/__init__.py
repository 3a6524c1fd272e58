"""Static analysis of start routines: calls, loops, and regions and mutexes held."""
