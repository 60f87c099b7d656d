"""One file per command, each exporting `command`; heavy imports stay inside the functions."""
