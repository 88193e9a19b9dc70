"""Speed and likelihood of what the language model writes."""
