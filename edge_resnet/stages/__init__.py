"""The stages of a run: each takes the Run, does its part, and leaves what it made in it."""
