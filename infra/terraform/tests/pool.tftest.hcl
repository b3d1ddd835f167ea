mock_provider "aws" {
  source          = "./mocks"
  override_during = plan
}

variables {
  name           = "gpu"
  vpc_id         = "vpc-0123456789abcdef0"
  subnets        = { us-east-1b = "subnet-1b", us-east-1c = "subnet-1c" }
  image          = "123456789012.dkr.ecr.us-east-1.amazonaws.com/tidepool-pool:0.1.0"
  instance_types = ["g6.xlarge"]
  instances_max  = 4
  log_group_name = "/prod/pool"
  edge = {
    name                         = "prod"
    cluster_name                 = "prod"
    cluster_arn                  = "arn:aws:ecs:us-east-1:123456789012:cluster/prod"
    controller_role_name         = "prod-controller"
    edge_security_group_id       = "sg-0123456789abcded0"
    controller_security_group_id = "sg-0123456789abcdec0"
    has_fallback                 = true
  }
  registry = {
    url              = "s3://prod-registry-123456789012"
    fleet_secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/fleet-secret-AbCdEf"
    policy_arns = {
      worker       = "arn:aws:iam::123456789012:policy/worker"
      builder      = "arn:aws:iam::123456789012:policy/builder"
      fleet_secret = "arn:aws:iam::123456789012:policy/fleet-secret"
    }
  }
}

run "scales_to_zero_with_a_fallback" {
  command = plan

  module {
    source = "../modules/pool"
  }

  assert {
    condition     = aws_autoscaling_group.pool.min_size == 0 && aws_autoscaling_group.pool.max_size == 4
    error_message = "from none to four"
  }

  assert {
    condition     = aws_autoscaling_group.pool.protect_from_scale_in && contains(aws_autoscaling_group.pool.suspended_processes, "AZRebalance") && !aws_autoscaling_group.pool.capacity_rebalance
    error_message = "nobody but the controller ends an instance"
  }

  assert {
    condition     = output.config.instances_min == 0 && output.config.instances_max == 4 && output.config.workers_per_instance == 1
    error_message = "and the controller is told the bounds"
  }

  assert {
    condition     = toset([for tag in aws_autoscaling_group.pool.tag : "${tag.key}=${tag.value} ${tag.propagate_at_launch}"]) == toset(["Name=prod-gpu true", "tidepool:fleet=prod true", "tidepool:pool=gpu true"])
    error_message = "instances say whose they are"
  }

  assert {
    condition     = jsondecode(jsonencode(output.config)) == jsondecode(file("pools.json")).pools[0]
    error_message = "the controller is told what the launcher reads"
  }

  assert {
    condition     = aws_autoscaling_group.pool.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 100
    error_message = "spot is a choice"
  }

  assert {
    condition     = aws_launch_template.instance.network_interfaces[0].associate_public_ip_address == "false"
    error_message = "no instance has a public address"
  }

  assert {
    condition     = aws_launch_template.instance.metadata_options[0].http_tokens == "required" && aws_launch_template.instance.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "IMDSv2 alone, and not for containers"
  }

  assert {
    condition = { for name, rule in aws_vpc_security_group_ingress_rule.flow : name => "${rule.referenced_security_group_id} ${rule.from_port}-${rule.to_port}" } == {
      calls   = "${var.edge.edge_security_group_id} 8100-8100"
      control = "${aws_security_group.worker.id} 8010-8010"
    }
    error_message = "edges reach workers, and workers the controller; there is no other way in"
  }

  assert {
    condition     = aws_launch_template.instance.block_device_mappings[0].ebs[0].encrypted == "true" && aws_launch_template.instance.block_device_mappings[0].ebs[0].volume_type == "gp3"
    error_message = "the volume is gp3, and encrypted"
  }

  assert {
    condition = alltrue([
      for container in jsondecode(aws_ecs_task_definition.worker.container_definitions) :
      container.readonlyRootFilesystem && container.user == "10001:10001" && container.stopTimeout == 120
    ])
    error_message = "read-only, not root, and two minutes to drain"
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].resourceRequirements == [{ type = "GPU", value = "1" }]
    error_message = "one GPU each"
  }

  assert {
    condition     = one(aws_ecs_task_definition.worker.placement_constraints).expression == "attribute:tidepool.pool == gpu" && strcontains(base64decode(aws_launch_template.instance.user_data), "{\"tidepool.pool\": \"gpu\"}")
    error_message = "on instances of its own pool"
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.worker.container_definitions)[0].name == output.config.container && aws_ecs_task_definition.worker.family == output.config.task_definition
    error_message = "the controller is told the right names"
  }

  assert {
    condition     = aws_iam_role_policy_attachment.registry.policy_arn == var.registry.policy_arns.builder
    error_message = "workers that build are builders"
  }
}

run "zero_has_to_be_said_without_a_fallback" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    edge = merge(var.edge, { has_fallback = false })
  }

  expect_failures = [var.instances_min]
}

run "zero_that_is_said" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    edge          = merge(var.edge, { has_fallback = false })
    instances_min = 0
  }

  assert {
    condition     = aws_autoscaling_group.pool.min_size == 0
    error_message = "who says it gets it"
  }
}

run "refuses_bounds_that_cross" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    instances_min = 5
  }

  expect_failures = [var.instances_max]
}

run "refuses_bounds_that_are_none" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    instances_min = -1
    worker        = { rest_s = 5 }
    volume_gb     = 8
  }

  expect_failures = [var.instances_min, var.worker, var.volume_gb]
}

run "spot_mix_of_workers_that_build_nothing" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    instance_types = ["g6.xlarge", "g6.2xlarge", "gr6.4xlarge"]
    spot           = { on_demand_base = 1, on_demand_percent = 25 }
    instances_min  = 4
    worker         = { builds = false }
  }

  assert {
    condition     = aws_autoscaling_group.pool.min_size == 0 && output.config.instances_min == 4
    error_message = "always on, as many as were asked for, by the controller: AWS ends nothing at a minimum of its own"
  }

  assert {
    condition     = aws_autoscaling_group.pool.mixed_instances_policy[0].instances_distribution[0].on_demand_base_capacity == 1 && aws_autoscaling_group.pool.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 25
    error_message = "one on demand, then a quarter"
  }

  assert {
    condition     = aws_autoscaling_group.pool.mixed_instances_policy[0].instances_distribution[0].spot_allocation_strategy == "price-capacity-optimized"
    error_message = "spot where it is cheap and lasts"
  }

  assert {
    condition     = aws_autoscaling_group.pool.mixed_instances_policy[0].launch_template[0].override[*].instance_type == tolist(var.instance_types)
    error_message = "all types, in their order"
  }

  assert {
    condition     = strcontains(base64decode(aws_launch_template.instance.user_data), "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true")
    error_message = "a spot notice lets go of the tasks"
  }

  assert {
    condition = toset(flatten([
      for statement in concat(local.execution_statements, local.instance_statements, local.launch_statements) : statement.Action
      if contains(statement.Resource, "*")
    ])) == toset(["ecr:GetAuthorizationToken", "ecs:DiscoverPollEndpoint"])
    error_message = "a star for a resource needs a reason"
  }

  assert {
    condition = length([
      for statement in concat(local.execution_statements, local.instance_statements, local.launch_statements) : statement
      if strcontains(join(" ", statement.Action), "*")
    ]) == 0
    error_message = "no action is a star"
  }

  assert {
    condition     = one([for statement in local.launch_statements : statement.Resource if contains(statement.Action, "autoscaling:SetDesiredCapacity")]) == [aws_autoscaling_group.pool.arn]
    error_message = "the controller scales this group"
  }

  assert {
    condition     = aws_iam_role_policy_attachment.registry.policy_arn == var.registry.policy_arns.worker
    error_message = "workers that build nothing write no engines"
  }

  assert {
    condition     = one([for statement in local.execution_statements : statement.Resource if statement.Sid == "Images"]) == ["arn:aws:ecr:us-east-1:123456789012:repository/tidepool-pool"]
    error_message = "only its own image is pulled"
  }
}

run "refuses_a_mix_that_cannot_be" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    spot   = { on_demand_base = 5, on_demand_percent = 101 }
    worker = { rest_s = 172800 } # the controller takes a day
  }

  expect_failures = [var.spot, var.worker]
}

run "refuses_instances_without_a_gpu" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    instance_types = ["m7i.xlarge"]
    image          = "tidepool-pool"
  }

  expect_failures = [var.instance_types, var.image]
}

run "refuses_sizes_that_cannot_be" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    instance_types = ["g6.huge"]
    subnets        = { "us-east-1" = "subnet-1b" }
  }

  expect_failures = [var.instance_types, var.subnets]
}

run "refuses_two_kinds_of_gpu" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    instance_types = ["g6.xlarge", "g5.xlarge"]
  }

  expect_failures = [var.instance_types]
}

run "refuses_a_zone_without_the_gpu" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    subnets = { us-east-1a = "subnet-1a", us-east-1b = "subnet-1b" }
  }

  expect_failures = [aws_autoscaling_group.pool]
}

run "refuses_a_zone_of_another_region" {
  command = plan

  module {
    source = "../modules/pool"
  }

  override_data {
    target          = data.aws_ec2_instance_type_offerings.zones
    override_during = plan
    values          = { locations = ["eu-west-1a"] }
  }

  variables {
    subnets = { eu-west-1a = "subnet-1a" }
  }

  expect_failures = [aws_autoscaling_group.pool]
}

run "refuses_more_workers_than_gpus" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    worker = { per_instance = 2, memory_mib = 4096 }
  }

  expect_failures = [aws_autoscaling_group.pool]
}

run "refuses_more_memory_than_there_is" {
  command = plan

  module {
    source = "../modules/pool"
  }

  variables {
    worker = { memory_mib = 16000 }
  }

  expect_failures = [aws_autoscaling_group.pool]
}
