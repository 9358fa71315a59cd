"""What a study says: statistics, figures, tables, HTML."""
