"""Pages and figures on datasets, runs and detections."""
