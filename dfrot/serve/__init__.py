"""An OpenAI-compatible endpoint for a few users; large deployments use vLLM through `dfq export`."""
