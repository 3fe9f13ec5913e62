"""Recording: what saves, deletions and reconciliation do to event rows."""
