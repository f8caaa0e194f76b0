"""Expressions: tokenisation, words about place, subject and object."""
