"""Events: what happens to the project's models, recorded with them, occurring once, and who hears of it."""
