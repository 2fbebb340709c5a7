"""What both servers share: life cycle, errors, telemetry, batching. Knows only core."""
