"""Convolutions and smeared keys as circuit elements."""
