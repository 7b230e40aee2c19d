"""From one process to many machines by one call, for fit_core.Runner."""
