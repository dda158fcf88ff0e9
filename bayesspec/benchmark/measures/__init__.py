"""What is measured: losses, coverage, lines, and comparisons with their errors."""
