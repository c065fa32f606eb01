"""Structured pruning: what channels and blocks are worth, what they cost, and which of them go."""
