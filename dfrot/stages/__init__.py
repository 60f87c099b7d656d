"""The stages behind the commands. Each reads a folder, and publishes one."""
