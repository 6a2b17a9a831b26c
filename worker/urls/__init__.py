"""URLs of brokers and databases, and passwords in files. Imports nothing of ours."""
