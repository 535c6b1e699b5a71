"""A run's copy on Google Drive, or on any folder that stays."""
