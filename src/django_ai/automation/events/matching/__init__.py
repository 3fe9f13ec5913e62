"""Matching: which entities belong to which Context, by a routing key that both sides compute."""
