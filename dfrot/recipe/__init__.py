"""Recipes: a whole run as one strict YAML file, its stages run in order, its expected metrics checked."""
