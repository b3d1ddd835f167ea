"""What a deployment costs in a month, before it is made."""
