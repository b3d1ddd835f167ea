"""What a scaling policy would have done: the production policies run over recorded arrivals."""
