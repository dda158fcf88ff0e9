"""The benchmark: accuracy and calibration of a bundle, and comparison with other methods."""
