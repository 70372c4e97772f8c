"""What bench.py measures: a file a subject, and `common`, what they share."""
