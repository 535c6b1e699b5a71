"""Mirror a run's folder on Google Drive, or in another folder that outlives the machine."""
