"""One small script per engine. They run in the engines' own environments, by path, and import nothing of dfrot."""
