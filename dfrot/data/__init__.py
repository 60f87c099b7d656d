"""Texts, conversations and images: read from files that are hostile until checked, or made from what Python ships."""
