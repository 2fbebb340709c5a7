"""What the benches compare this project with."""
