"""05: draw, judge, report."""
