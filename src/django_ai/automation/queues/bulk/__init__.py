"""Actions over many rows: what can be done to which (``verbs``), to which rows (``filters``), and how workers do it."""
