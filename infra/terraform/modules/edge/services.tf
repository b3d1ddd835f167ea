locals {
  private = { subnets = var.private_subnet_ids, assign_public_ip = false }
}

resource "aws_ecs_service" "edge" {
  name                               = "edge"
  cluster                            = aws_ecs_cluster.fleet.id
  task_definition                    = aws_ecs_task_definition.tier["edge"].arn
  launch_type                        = "FARGATE"
  platform_version                   = "LATEST"
  desired_count                      = var.tasks.min
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = 60
  propagate_tags                     = "SERVICE"

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = local.private.subnets
    assign_public_ip = local.private.assign_public_ip
    security_groups  = [aws_security_group.tier["edge"].id]
  }

  load_balancer {
    target_group_arn = aws_lb_target_group.edge.arn
    container_name   = "edge"
    container_port   = local.port
  }

  dynamic "load_balancer" {
    for_each = aws_lb_target_group.admin[*].arn

    content {
      target_group_arn = load_balancer.value
      container_name   = "edge"
      container_port   = local.admin_port
    }
  }

  service_registries {
    registry_arn = aws_service_discovery_service.edge.arn
  }

  lifecycle {
    ignore_changes = [desired_count] # autoscaling's
  }

  # A target group without a listener takes no service, and a task without rights does not start.
  depends_on = [
    aws_lb_listener.https,
    aws_lb_listener_rule.admin,
    aws_iam_role_policy.execution,
    aws_iam_role_policy_attachment.registry,
    aws_iam_role_policy_attachment.secret,
  ]
}

# One leads. The next one starts before the last one ends, and takes over by the leader record.
resource "aws_ecs_service" "controller" {
  name                               = "controller"
  cluster                            = aws_ecs_cluster.fleet.id
  task_definition                    = aws_ecs_task_definition.tier["controller"].arn
  launch_type                        = "FARGATE"
  platform_version                   = "LATEST"
  desired_count                      = 1
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  propagate_tags                     = "SERVICE"

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = local.private.subnets
    assign_public_ip = local.private.assign_public_ip
    security_groups  = [aws_security_group.tier["controller"].id]
  }

  depends_on = [
    aws_iam_role_policy.execution,
    aws_iam_role_policy_attachment.registry,
    aws_iam_role_policy_attachment.secret,
  ]
}

resource "aws_ecs_service" "fallback" {
  count = var.fallback.tasks > 0 ? 1 : 0

  name                               = "fallback"
  cluster                            = aws_ecs_cluster.fleet.id
  task_definition                    = aws_ecs_task_definition.tier["fallback"].arn
  launch_type                        = "FARGATE"
  platform_version                   = "LATEST"
  desired_count                      = var.fallback.tasks
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  propagate_tags                     = "SERVICE"

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = local.private.subnets
    assign_public_ip = local.private.assign_public_ip
    security_groups  = [aws_security_group.tier["fallback"].id]
  }

  depends_on = [
    aws_iam_role_policy.execution,
    aws_iam_role_policy_attachment.registry,
    aws_iam_role_policy_attachment.secret,
  ]
}
