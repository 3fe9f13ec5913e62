"""Integrations: optional parts that stand on top of the package and import only its public names."""
