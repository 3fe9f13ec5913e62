"""The automations of the hotel. The package is discovered automatically; no setting names its modules."""
