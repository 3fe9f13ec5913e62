"""Pure values: no rows, no queries."""
