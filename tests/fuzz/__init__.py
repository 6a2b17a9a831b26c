"""Coverage-guided fuzzing of the line in process; not part of the tests, see ``make fuzz``."""
