"""The ground floor: rows that know when they are next due, and everything that performs them."""
