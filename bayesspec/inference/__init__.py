"""From observations to posteriors: one function, several engines on one log density."""
