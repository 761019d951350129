"""Tests of the laws that the project keeps."""
