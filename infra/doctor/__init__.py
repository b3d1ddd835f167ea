"""What `tidepool doctor` looks at, a module for each part."""
