"""From a log to curated pairs: SQL files and the engine that runs them."""
