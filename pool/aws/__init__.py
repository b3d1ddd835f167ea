"""Workers on AWS: each is a standalone ECS task on a GPU instance of an auto scaling group."""
