mock_provider "aws" {
  source          = "./mocks"
  override_during = plan
}

# What pool.tftest.hcl gives out, and the launcher reads: tests/infra/test_terraform_modules.py.
variables {
  pools              = jsondecode(file("pools.json")).pools
  name               = "prod"
  vpc_id             = "vpc-0123456789abcdef0"
  public_subnet_ids  = ["subnet-0a", "subnet-0b"]
  private_subnet_ids = ["subnet-1a", "subnet-1b"]
  certificate_arn    = "arn:aws:acm:us-east-1:123456789012:certificate/01234567-89ab-cdef-0123-456789abcdef"
  image              = "123456789012.dkr.ecr.us-east-1.amazonaws.com/tidepool-edge:0.1.0"
  log_group_names    = { edge = "/prod/edge", controller = "/prod/controller", fallback = "/prod/fallback" }
  registry = {
    url              = "s3://prod-registry-123456789012"
    queue_url        = "https://sqs.us-east-1.amazonaws.com/123456789012/prod-registry-changes"
    fleet_secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/fleet-secret-AbCdEf"
    policy_arns = {
      edge         = "arn:aws:iam::123456789012:policy/edge"
      edge_admin   = "arn:aws:iam::123456789012:policy/edge-admin"
      controller   = "arn:aws:iam::123456789012:policy/controller"
      worker       = "arn:aws:iam::123456789012:policy/worker"
      fleet_secret = "arn:aws:iam::123456789012:policy/fleet-secret"
    }
  }
}

run "private_and_least_privilege" {
  command = plan

  module {
    source = "../modules/edge"
  }

  assert {
    condition     = aws_lb_listener.https.protocol == "HTTPS" && aws_lb_listener.https.certificate_arn == var.certificate_arn && startswith(aws_lb_listener.https.ssl_policy, "ELBSecurityPolicy-TLS13")
    error_message = "HTTPS with TLS 1.2 at least"
  }

  assert {
    condition     = aws_lb_listener.redirect.default_action[0].type == "redirect" && aws_lb_listener.redirect.default_action[0].redirect[0].protocol == "HTTPS"
    error_message = "HTTP is only a redirect"
  }

  assert {
    condition     = aws_lb_target_group.edge.health_check[0].path == "/v2/health/ready" && aws_lb_target_group.edge.deregistration_delay == "45"
    error_message = "an edge is called while it is ready, and let go of within 45 s"
  }

  assert {
    condition     = alltrue([for task in aws_ecs_task_definition.tier : jsondecode(task.container_definitions)[0].stopTimeout == 60])
    error_message = "a task has 60 s to end"
  }

  assert {
    condition     = strcontains(join(" ", jsondecode(aws_ecs_task_definition.tier["edge"].container_definitions)[0].command), "--keep-alive-s ${aws_lb.edge.idle_timeout + 15}")
    error_message = "an edge keeps a connection 15 s longer than the load balancer does"
  }

  assert {
    condition     = aws_lb.edge.idle_timeout == 60 && one(aws_ecs_cluster.fleet.setting).value == "disabled"
    error_message = "a minute of silence; nothing is paid that nobody reads"
  }

  assert {
    condition     = keys(aws_ecs_task_definition.tier) == ["controller", "edge", "fallback"]
    error_message = "three tiers"
  }

  assert {
    condition = alltrue([
      for task in aws_ecs_task_definition.tier : alltrue([
        for container in jsondecode(task.container_definitions) :
        container.readonlyRootFilesystem && container.user == "10001:10001"
      ])
    ])
    error_message = "read-only, and not root"
  }

  assert {
    condition = alltrue([
      for task in aws_ecs_task_definition.tier : alltrue([
        for container in jsondecode(task.container_definitions) :
        container.secrets == [{ name = "TIDEPOOL_FLEET_SECRET", valueFrom = var.registry.fleet_secret_arn }]
      ])
    ])
    error_message = "the fleet's secret comes from Secrets Manager"
  }

  assert {
    condition = alltrue([
      for task in aws_ecs_task_definition.tier : toset([for mount in jsondecode(task.container_definitions)[0].mountPoints : mount.containerPath]) == toset(["/data", "/tmp"])
    ])
    error_message = "what is written goes to /data and /tmp"
  }

  assert {
    condition = alltrue([
      for service in concat([aws_ecs_service.edge, aws_ecs_service.controller], aws_ecs_service.fallback[*]) :
      !service.network_configuration[0].assign_public_ip && service.network_configuration[0].subnets == toset(var.private_subnet_ids)
    ])
    error_message = "no task has a public address"
  }

  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.public : rule.from_port]) == toset([80, 443])
    error_message = "the internet reaches 80 and 443 of the load balancer"
  }

  assert {
    condition = { for name, flow in local.flows : name => "${flow.from} ${flow.to} ${flow.port}" } == {
      calls            = "balancer edge 8000"
      edge_control     = "edge controller 8010"
      fallback_calls   = "edge fallback 8100"
      fallback_control = "fallback controller 8010"
    }
    error_message = "between the tiers nothing else is open"
  }

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.scraper) == 0 && length(aws_lb_listener_rule.admin) == 0
    error_message = "nobody reaches 8002 unless he is named"
  }

  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_egress_rule.aws : rule.from_port == 443 && rule.to_port == 443])
    error_message = "out of the VPC goes TLS alone"
  }

  assert {
    condition = { for name, one in local.registry_policies : name => one.policy } == {
      "controller itself" = var.registry.policy_arns.controller
      "edge itself"       = var.registry.policy_arns.edge
      "fallback itself"   = var.registry.policy_arns.worker
    }
    error_message = "each tier has its own rights and no other's"
  }

  assert {
    condition     = length(distinct([for task in aws_ecs_task_definition.tier : task.family])) == 3 && keys(aws_iam_role.task) == ["controller", "edge", "fallback"]
    error_message = "and its own role"
  }

  # A star only where AWS has no smaller resource; the reason stands beside each in roles.tf.
  assert {
    condition = toset(flatten([
      for statement in concat(local.execution_statements, local.launch_statements) : statement.Action
      if contains(statement.Resource, "*")
    ])) == toset(["autoscaling:DescribeAutoScalingGroups", "ecr:GetAuthorizationToken", "ecs:ListTasks"])
    error_message = "a star for a resource needs a reason"
  }

  assert {
    condition     = length([for statement in concat(local.execution_statements, local.launch_statements) : statement if strcontains(join(" ", statement.Action), "*")]) == 0
    error_message = "no action is a star"
  }

  assert {
    condition = jsondecode(one([
      for variable in jsondecode(aws_ecs_task_definition.tier["controller"].container_definitions)[0].environment : variable.value
      if variable.name == "TIDEPOOL_POOLS"
    ])) == jsondecode(file("pools.json"))
    error_message = "the controller is told of the pools"
  }
}

run "admin_and_metrics_for_some" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    admin_cidrs                = ["203.0.113.0/24"]
    scraper_security_group_ids = ["sg-0123456789abcdef1"]
    tasks                      = { min = 3, max = 5, cpu = 4096, memory_mib = 30720 }
    balancer                   = { idle_s = 600 }
  }

  assert {
    condition     = aws_lb.edge.idle_timeout == 600 && strcontains(join(" ", jsondecode(aws_ecs_task_definition.tier["edge"].container_definitions)[0].command), "--keep-alive-s 615 ")
    error_message = "calls may wait as long as is said, and edges keep connections for longer"
  }

  assert {
    condition = toset(flatten([for condition in aws_lb_listener_rule.admin[0].condition : concat(
      [for path in condition.path_pattern : tolist(path.values)], [for ip in condition.source_ip : tolist(ip.values)]
    )])) == toset(["/admin/*", "203.0.113.0/24"])
    error_message = "/admin/ is open to those networks alone"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.scraper[0].from_port == 8002 && aws_vpc_security_group_ingress_rule.scraper[0].referenced_security_group_id == "sg-0123456789abcdef1"
    error_message = "what scrapes reaches 8002"
  }

  assert {
    condition     = aws_iam_role_policy_attachment.registry["edge admin"].policy_arn == var.registry.policy_arns.edge_admin
    error_message = "only then may an edge change documents"
  }

  assert {
    condition     = aws_appautoscaling_target.edge.min_capacity == 3 && aws_appautoscaling_target.edge.max_capacity == 5 && aws_ecs_service.edge.desired_count == 3
    error_message = "as many as were asked for"
  }

  assert {
    condition = toset([
      for policy in [aws_appautoscaling_policy.cpu, aws_appautoscaling_policy.requests] :
      policy.target_tracking_scaling_policy_configuration[0].predefined_metric_specification[0].predefined_metric_type
    ]) == toset(["ECSServiceAverageCPUUtilization", "ALBRequestCountPerTarget"])
    error_message = "by CPU and by calls"
  }
}

run "without_fallback" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    fallback = { tasks = 0 }
    pools    = []
  }

  assert {
    condition     = length(aws_ecs_service.fallback) == 0 && !output.for_pools.has_fallback && output.fallback_service_name == null
    error_message = "no CPU workers, and pools know"
  }

  assert {
    condition     = keys(aws_iam_role.task) == ["controller", "edge"] && !contains(keys(aws_security_group.tier), "fallback")
    error_message = "and nothing is left of them"
  }
}

run "refuses_what_cannot_be" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    certificate_arn   = "arn:aws:iam::123456789012:server-certificate/old"
    public_subnet_ids = ["subnet-0a"]
    image             = "tidepool-edge:latest"
    tasks             = { min = 0 }
    fallback          = { cpu = 1000 }
  }

  expect_failures = [var.certificate_arn, var.public_subnet_ids, var.image, var.tasks, var.fallback]
}

# Each size is between two that Fargate has; 4096 CPU units end at 30720 MiB.
run "refuses_what_aws_or_the_controller_would" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    tasks    = { cpu = 4096, memory_mib = 32768 }
    fallback = { cpu = 2048, memory_mib = 5000 }
    balancer = { idle_s = 4001 }
    pools = [for name in ["a", "b"] : merge(jsondecode(file("pools.json")).pools[0], {
      name = name, group = name, instances_max = 100, workers_per_instance = 8
    })]
  }

  expect_failures = [var.tasks, var.fallback, var.balancer, var.pools]
}

run "warns_of_more_edges_than_a_scrape_sees" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    scraper_security_group_ids = ["sg-0123456789abcdef1"]
    tasks                      = { max = 9 }
  }

  expect_failures = [check.every_edge_is_scraped]
}

run "refuses_the_whole_internet_as_admin" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    private_subnet_ids = ["subnet-0a"]
    admin_cidrs        = ["0.0.0.0/0"]
    balancer           = { ingress_cidrs = ["everybody"] }
  }

  expect_failures = [var.private_subnet_ids, var.admin_cidrs, var.balancer]
}

run "refuses_a_certificate_of_another_region" {
  command = plan

  module {
    source = "../modules/edge"
  }

  variables {
    certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/01234567-89ab-cdef-0123-456789abcdef"
  }

  expect_failures = [aws_lb.edge]
}
