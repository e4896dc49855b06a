"""Who does what in which order: instructions as data, schedules as pure functions."""
