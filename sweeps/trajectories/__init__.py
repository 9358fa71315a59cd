"""What happens along training: Figure 3."""
