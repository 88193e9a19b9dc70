"""What a refresh costs in each system."""
