"""Writing and reading the GPTQ layout."""
