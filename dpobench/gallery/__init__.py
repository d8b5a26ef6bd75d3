"""Plugins on show: lists, portraits, curves of losses, the verdict on a user's file, and files to start from."""

__all__ = ["portrait", "scoring", "starter", "verdict"]
