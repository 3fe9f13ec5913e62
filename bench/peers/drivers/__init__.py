"""One module for each contestant, imported only in its environment."""
