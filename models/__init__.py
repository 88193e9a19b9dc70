"""Tensors in, tensors out: backbones, instructions, the LLM, experts, fusion, constraint, training, evaluation."""
