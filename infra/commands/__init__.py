"""The commands of `tidepool`, a module for each family."""
