"""The catalogue: everything that the project's code declares, as sentences, with docstrings, source, graphs and counts.

``entries.py`` reads the registers, ``counts.py`` counts rows with a bounded number of queries, and ``page.py`` shows
both.
"""
