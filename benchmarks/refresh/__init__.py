"""The cost of a refresh in each system."""
