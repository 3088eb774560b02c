"""Rows: their columns, their files, and a folder or object store that holds them."""
