# GPU instances from none to many. The controller says how many: it raises the group's desired
# capacity, and ends instances one by one when they are empty. Nothing else scales them.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

# Amazon Linux 2023 with ECS's agent and NVIDIA's driver. A newer one is taken by the next apply,
# for instances that start from then on.
data "aws_ssm_parameter" "ami" {
  name = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"
}

data "aws_ec2_instance_type" "used" {
  for_each = toset(var.instance_types)

  instance_type = each.key
}

data "aws_ec2_instance_type_offerings" "zones" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = var.instance_types
  }

  filter {
    name   = "location"
    values = keys(var.subnets)
  }
}

locals {
  region     = data.aws_region.current.name
  partition  = data.aws_partition.current.partition
  account_id = data.aws_caller_identity.current.account_id
  full_name  = "${var.edge.name}-${var.name}"

  # By the GPU, which an engine is built for; families of one line share one.
  gpus = {
    g4dn    = "T4"
    g5      = "A10G"
    g6      = "L4"
    gr6     = "L4"
    g6e     = "L40S"
    g7e     = "RTX PRO 6000"
    p4d     = "A100 40 GB"
    p4de    = "A100 80 GB"
    p5      = "H100"
    p5e     = "H200"
    p5en    = "H200"
    p6-b200 = "B200"
    p6-b300 = "B300"
  }

  instances_min = coalesce(var.instances_min, 0)

  zones_without = [
    for zone in keys(var.subnets) : zone
    if !contains(data.aws_ec2_instance_type_offerings.zones.locations, zone)
  ]

  gpus_least   = min([for type in data.aws_ec2_instance_type.used : sum(concat([0], [for gpu in type.gpus : gpu.count]))]...)
  memory_least = min([for type in data.aws_ec2_instance_type.used : type.memory_size]...)

  config = {
    name                 = var.name
    group                = aws_autoscaling_group.pool.name
    task_definition      = aws_ecs_task_definition.worker.family
    container            = local.container
    instances_min        = local.instances_min
    instances_max        = var.instances_max
    workers_per_instance = var.worker.per_instance
    device               = "cuda:0" # of the one GPU that a task is given
    subnets              = values(var.subnets)
    security_groups      = [aws_security_group.worker.id]
    rest_s               = var.worker.rest_s
  }
}

resource "aws_launch_template" "instance" {
  name                   = local.full_name
  description            = "GPU instances of the pool ${var.name}"
  image_id               = data.aws_ssm_parameter.ami.insecure_value
  update_default_version = true

  user_data = base64encode(templatefile("${path.module}/user_data.sh", {
    cluster = var.edge.cluster_name
    pool    = var.name
  }))

  iam_instance_profile {
    arn = aws_iam_instance_profile.instance.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  network_interfaces {
    associate_public_ip_address = false
    delete_on_termination       = true
    security_groups             = [aws_security_group.instance.id]
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.volume_gb
      throughput            = 500 # MB/s: an image of gigabytes is unpacked before the first answer
      encrypted             = true
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "volume"
    tags          = { Name = local.full_name, "tidepool:fleet" = var.edge.name, "tidepool:pool" = var.name }
  }
}

resource "aws_autoscaling_group" "pool" {
  name                  = local.full_name
  min_size              = 0 # the controller keeps instances_min: at the minimum AWS would refuse to end a broken one
  max_size              = var.instances_max
  vpc_zone_identifier   = values(var.subnets)
  protect_from_scale_in = true
  capacity_rebalance    = false
  suspended_processes   = ["AZRebalance"] # it would end an instance that works
  enabled_metrics       = ["GroupDesiredCapacity", "GroupInServiceInstances"]
  force_delete          = true # else `terraform destroy` waits for protected instances for ever

  # An instance may not come for hours where there is no capacity; the stack is there without it.
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = var.spot.on_demand_base
      on_demand_percentage_above_base_capacity = var.spot.on_demand_percent
      on_demand_allocation_strategy            = "prioritized"
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.instance.id
        version            = aws_launch_template.instance.latest_version
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  dynamic "tag" {
    for_each = { Name = local.full_name, "tidepool:fleet" = var.edge.name, "tidepool:pool" = var.name }

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity] # the controller's

    precondition {
      condition     = alltrue([for zone in keys(var.subnets) : startswith(zone, local.region)])
      error_message = "subnets: the provider's region is ${local.region}, but there are zones of another: ${join(", ", keys(var.subnets))}."
    }

    precondition {
      condition     = length(local.zones_without) == 0
      error_message = "subnets: ${join(", ", local.zones_without)} has none of ${join(", ", var.instance_types)}; leave the zone out, or choose other types (aws ec2 describe-instance-type-offerings --location-type availability-zone)."
    }

    precondition {
      condition     = local.gpus_least >= var.worker.per_instance
      error_message = "worker: per_instance is ${var.worker.per_instance}, but the smallest of ${join(", ", var.instance_types)} has ${local.gpus_least} whole GPUs; each worker takes one."
    }

    precondition {
      condition     = var.worker.per_instance * var.worker.memory_mib <= 0.93 * local.memory_least
      error_message = "worker: ${var.worker.per_instance} x ${var.worker.memory_mib} MiB do not fit into the smallest of ${join(", ", var.instance_types)}, which has ${local.memory_least} MiB, 7 % of them for itself."
    }
  }

  # An instance that cannot register would be paid for and never used.
  depends_on = [aws_iam_role_policy.instance]
}
