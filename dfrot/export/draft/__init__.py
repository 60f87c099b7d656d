"""Drafts in the formats of serving engines, and what engines make of them."""
