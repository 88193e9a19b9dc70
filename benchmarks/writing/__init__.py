"""Speed and likelihood of texts that the language model writes."""
