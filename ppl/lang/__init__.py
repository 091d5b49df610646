"""The text syntax: models, families and objectives written as in a paper, elaborated to the programs of the Python API."""
