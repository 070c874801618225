"""Distillation jobs: what is asked for, who works on it, what came of it."""
