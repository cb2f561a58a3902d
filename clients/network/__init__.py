"""The site's link to the coordinator."""
