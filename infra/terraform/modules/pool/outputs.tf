output "config" {
  description = "What module edge takes among its `pools`, for the controller."
  value       = local.config
}

output "autoscaling_group_name" {
  description = "Auto scaling group of the instances."
  value       = aws_autoscaling_group.pool.name
}

output "instances_max" {
  description = "Most instances at once."
  value       = var.instances_max
}

output "security_group_id" {
  description = "Security group of the workers."
  value       = aws_security_group.worker.id
}

output "task_definition_family" {
  description = "Family of the workers' task definition."
  value       = aws_ecs_task_definition.worker.family
}
