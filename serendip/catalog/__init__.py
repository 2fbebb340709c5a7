"""Items, logs, media decoding and the synthetic world: what a user brings, checked."""
