"""Star libraries, noise of real exposures, and the split between training and test."""
