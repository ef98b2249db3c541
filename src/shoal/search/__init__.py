"""The engine that every method runs on: the loop, the run's folder, resuming, the result."""
