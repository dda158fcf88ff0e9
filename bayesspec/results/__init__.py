"""What inference found, for people: results, tables, words of warning, files, figures."""
