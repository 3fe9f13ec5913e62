"""Database access below the engine: connections, sessions, inserts, locks, and what each database needs."""
