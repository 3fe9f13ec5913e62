"""What the databases and their drivers need, whatever the tables are."""
