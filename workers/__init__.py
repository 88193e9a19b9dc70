"""Long-running processes and the command line: knowledge, ranking, the vector store, the embedded stack."""
