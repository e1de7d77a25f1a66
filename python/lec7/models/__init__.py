"""Whole networks."""

from lec7.models.char_lm import CharLM

__all__ = ["CharLM"]
