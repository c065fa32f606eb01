"""The proof: an artifact is read back, run on its own runtime, and compared with the graph."""
