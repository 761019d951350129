"""Runs servers of objects on loopback for tests: one server a module, each ended with the test session.

They know nothing of the product. A server gives buckets (`bucket.py`), a proxy (`proxy.py`) makes the way to them
faulty, slow or far, and `fixtures.py` starts each server once per test process.
"""
