"""The routes of the player page."""
