"""A package, so that the suite runs on what discovery finds below it."""
