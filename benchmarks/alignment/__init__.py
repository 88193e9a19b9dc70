"""Do contradictions teach the language model?"""
