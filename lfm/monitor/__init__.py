"""The lightweight function monitor.  Standard library only: it runs inside the packed interpreter."""
