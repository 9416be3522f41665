"""Trained runs on the Hugging Face Hub: save them with a model card, load them, and push them."""

from bpfree.hub.share import load, push, save

__all__ = ["load", "push", "save"]
