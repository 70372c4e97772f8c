"""Scores of edits, by any method, of cases from any place, with the metrics of the field.

cases.py: what is asked for, and folders of it; metrics.py: the table of metrics; networks.py: what some of them look
with; scoring.py: edits made and scored, in processes, and kept; rows.py: which methods with which knobs; intervals.py:
means, and how sure they are; report.py, curves.py: tables, sheets and plots of what was kept.
"""
