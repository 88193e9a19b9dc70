"""Is the reference tuned? Its settings changed one at a time."""
