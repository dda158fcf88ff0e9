"""Results of inference: tables, warnings, files and figures."""
