"""What the numerical zeros depend on."""
