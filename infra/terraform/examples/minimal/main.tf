# One model, one region, one kind of GPU, which is rented only while somebody calls. Meanwhile, and
# while an instance starts, a CPU worker answers for endpoints with `scale: {fallback: cpu}`.

locals {
  # Regions with g6 or g5 instances, 2026-11-26.
  regions = [
    "ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-2", "ca-central-1", "eu-central-1",
    "eu-north-1", "eu-south-2", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1", "us-east-1",
    "us-east-2", "us-west-2",
  ]

  # Offers are of local zones too, which take no load balancer of this kind.
  zones_with_gpu = sort(setintersection(data.aws_ec2_instance_type_offerings.gpu.locations, data.aws_availability_zones.open.names))

  # A load balancer needs two; the pool is in those with the GPU.
  zones = coalesce(var.zones, slice(distinct(concat(local.zones_with_gpu, sort(data.aws_availability_zones.open.names))), 0, 2))
}

data "aws_availability_zones" "open" {
  # checkov:skip=CKV_AWS_394:only a first choice; zones that are to last are named (zones)
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }

  filter {
    name   = "zone-type"
    values = ["availability-zone"] # no local zones
  }
}

data "aws_ec2_instance_type_offerings" "gpu" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = [var.instance_type]
  }

  lifecycle {
    postcondition {
      condition     = length(setintersection(self.locations, data.aws_availability_zones.open.names)) > 0
      error_message = "instance_type: ${var.region} has no ${var.instance_type}; choose another type, or another region."
    }

    postcondition {
      condition     = var.zones == null || length(setintersection(self.locations, coalesce(var.zones, []))) > 0
      error_message = "zones: none of ${join(", ", coalesce(var.zones, []))} has ${var.instance_type}; of ${var.region} these do: ${join(", ", sort(distinct(self.locations)))}."
    }
  }
}

module "network" {
  source = "../../modules/network"

  name               = var.name
  availability_zones = local.zones
}

module "registry" {
  source = "../../modules/registry"

  name                 = var.name
  force_destroy        = var.force_destroy
  secret_recovery_days = var.force_destroy ? 0 : 7
}

module "edge" {
  source = "../../modules/edge"

  name               = var.name
  vpc_id             = module.network.vpc_id
  public_subnet_ids  = module.network.public_subnet_ids
  private_subnet_ids = module.network.private_subnet_ids
  certificate_arn    = var.certificate_arn
  registry           = module.registry
  image              = var.images.edge
  log_group_names    = module.monitoring.log_group_names
  pools              = [module.gpu.config]

  # Only a price that is in the list of prices; others can be given in USD, gpu=0.8.
  device_price_usd_per_h = var.region == "us-east-1" && var.instance_type == "g6.xlarge" ? "gpu=g6.xlarge,cpu=fargate-2-4" : ""
}

module "gpu" {
  source = "../../modules/pool"

  name           = "gpu"
  edge           = module.edge.for_pools
  registry       = module.registry
  vpc_id         = module.network.vpc_id
  subnets        = { for zone, id in module.network.private_subnet_ids_by_zone : zone => id if contains(local.zones_with_gpu, zone) }
  image          = var.images.pool
  instance_types = [var.instance_type]
  instances_max  = var.instances_max
  log_group_name = module.monitoring.log_group_names.pool
}

module "monitoring" {
  source = "../../modules/monitoring"

  name         = var.name
  alarm_emails = var.alarm_emails
  cluster_name = module.edge.cluster_name
  queue_name   = module.registry.queue_name

  load_balancer = {
    arn_suffix              = module.edge.load_balancer_arn_suffix
    target_group_arn_suffix = module.edge.target_group_arn_suffix
  }

  services = {
    edge       = module.edge.service_name
    controller = module.edge.controller_service_name
    fallback   = module.edge.fallback_service_name
  }

  pools = {
    gpu = {
      autoscaling_group_name = module.gpu.autoscaling_group_name
      instances_min          = module.gpu.config.instances_min
      instances_max          = module.gpu.config.instances_max
    }
  }
}
