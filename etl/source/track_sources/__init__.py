"""Reads the tracks that tracking programs write in other forms than tables, each as the columns of a table."""
