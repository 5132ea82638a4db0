"""Floor 5: llama.cpp on this machine. Where models come from, one child process a model, and the connector to it."""
