"""The measures of the benchmark: losses, coverage, lines, and comparisons with their errors."""
