"""URLs of brokers and databases, and passwords that stand in files; imports nothing of ours."""
