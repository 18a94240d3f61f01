"""Small worlds whose truth can be computed, and the tiny policies that learn in them."""
