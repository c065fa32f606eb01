"""Latencies of single layers, measured once on a machine, and what they say about a whole graph."""
