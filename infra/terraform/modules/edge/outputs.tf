output "for_pools" {
  description = "What module pool takes as `edge`. Not this module whole: its controller waits for the pools."
  value = {
    name                         = var.name
    cluster_name                 = aws_ecs_cluster.fleet.name
    cluster_arn                  = aws_ecs_cluster.fleet.arn
    controller_role_name         = aws_iam_role.task["controller"].name
    edge_security_group_id       = aws_security_group.tier["edge"].id
    controller_security_group_id = aws_security_group.tier["controller"].id
    has_fallback                 = var.fallback.tasks > 0
  }
}

output "cluster_name" {
  description = "ECS cluster of the fleet."
  value       = aws_ecs_cluster.fleet.name
}

output "cluster_arn" {
  description = "ARN of that cluster."
  value       = aws_ecs_cluster.fleet.arn
}

output "service_name" {
  description = "ECS service of the edges."
  value       = aws_ecs_service.edge.name
}

output "controller_service_name" {
  description = "ECS service of the controller."
  value       = aws_ecs_service.controller.name
}

output "fallback_service_name" {
  description = "ECS service of the CPU workers; null: there are none."
  value       = one(aws_ecs_service.fallback[*].name)
}

output "edge_security_group_id" {
  description = "Security group of the edges."
  value       = aws_security_group.tier["edge"].id
}

output "controller_security_group_id" {
  description = "Security group of the controller."
  value       = aws_security_group.tier["controller"].id
}

output "load_balancer_arn_suffix" {
  description = "The load balancer in CloudWatch's dimensions."
  value       = aws_lb.edge.arn_suffix
}

output "target_group_arn_suffix" {
  description = "The edges' target group in CloudWatch's dimensions."
  value       = aws_lb_target_group.edge.arn_suffix
}

output "load_balancer_dns_name" {
  description = "What the domain's record points to."
  value       = aws_lb.edge.dns_name
}

output "load_balancer_zone_id" {
  description = "Hosted zone of that name, for an alias record."
  value       = aws_lb.edge.zone_id
}

output "discovery_name" {
  description = "Name in the VPC that resolves to every edge task; their metrics are on port 8002."
  value       = "${aws_service_discovery_service.edge.name}.${aws_service_discovery_private_dns_namespace.fleet.name}"
}
