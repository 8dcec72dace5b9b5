"""What came in: one reader per export format, canonical tables, data quality and the lake."""
