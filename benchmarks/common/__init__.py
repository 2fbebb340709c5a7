"""What the benches share: descriptions to work on, and clocks."""
