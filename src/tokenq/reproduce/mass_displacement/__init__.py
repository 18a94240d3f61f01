"""`tokenq reproduce displacement`: where the mass of a chosen answer goes."""
