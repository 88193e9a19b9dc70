"""From an event to the recommendation that includes it, and from drift to fresh knowledge in use."""
