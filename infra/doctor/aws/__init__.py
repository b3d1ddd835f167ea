"""What the doctor asks of AWS, or of a server that speaks S3; changes nothing there."""
