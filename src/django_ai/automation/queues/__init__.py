"""The engine: rows that know when they are next due, and the code that performs them."""
