"""The command line: parses, calls one library function, shows the result."""
