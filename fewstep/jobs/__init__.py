"""Distillation jobs of a running server, from the command line."""
