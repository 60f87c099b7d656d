"""Writing and inspecting GGUF, the file format of llama.cpp."""
