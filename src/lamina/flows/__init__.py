"""The only joiners: each flow ties rooms together for one verb of the command line."""
