"""Whole models beside other engines: every engine in a process of its own, in turns, on the same token ids."""
