"""What type checkers see of the public names. mypy and pyright read these modules; no test imports them."""
