"""What an operator runs beside the workers: dead letters, ``top``, ``doctor``."""
