"""An operator's tools beside the workers: dead letters, ``top``, ``doctor``."""
