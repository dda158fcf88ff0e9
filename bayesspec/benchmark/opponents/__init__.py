"""Opponents, the comparison methods of the benchmark: the usual alternatives, tuned with care."""
