"""What the report is made of: the figures, the verdicts, the charts and the page."""
