"""What the hotel does by itself. Every module in here is found without being named anywhere."""
