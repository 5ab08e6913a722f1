"""YAML that ships with the package."""
