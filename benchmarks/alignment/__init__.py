"""Fine-tuning the language model on contradictions: does it help other users?"""
