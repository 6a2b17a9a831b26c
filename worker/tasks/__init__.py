"""Small pieces of concurrency that know nothing of runs, databases and brokers."""
