"""Photographs and pictures: reading, writing, resizing, colour."""
