"""Opponents of the benchmark: what people would use instead, each tuned as a careful person would."""
