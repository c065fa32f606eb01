"""One file a runtime: run this artifact on these images."""
