"""Matching: which entities belong to which Context, as a routing key that both sides compute."""
