"""Speed and memory of whole models and of drafts, beside llama.cpp in the same run."""
