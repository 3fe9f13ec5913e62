"""Telemetry: extras that listen to the engine, and tell others what it does. Each is optional, and imports its library
only where it is used.

``AUTOMATION["TELEMETRY"]`` lists those that the app connects when Django starts; ``extras`` knows them all. ``logs`` is
a filter for ``LOGGING``, and needs no app.
"""
