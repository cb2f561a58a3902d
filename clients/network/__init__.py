"""Settings of the site's link to the coordinator are made here: its speed, and the route through a proxy."""
