"""A Django app with the automations that are compared with the peers."""
