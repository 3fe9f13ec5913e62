"""The database triggers that write to the outbox of captured writes: their SQL, and whether they are installed."""
