"""Events: changes of the project's models, recorded with them, occurring once, and their subscribers."""
