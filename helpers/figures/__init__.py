"""Images for notebooks and reports: image grids, loss curves, and plots of a sweep's trials."""
