variable "name" {
  description = "Name of the pool within its fleet."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'."
  }
}

variable "edge" {
  description = "What module edge gives out as `for_pools`."
  type = object({
    name                         = string
    cluster_name                 = string
    cluster_arn                  = string
    controller_role_name         = string
    edge_security_group_id       = string
    controller_security_group_id = string
    has_fallback                 = bool
  })
}

variable "registry" {
  description = "What module registry gives out: pass it whole."
  type = object({
    url              = string
    fleet_secret_arn = string
    policy_arns = object({
      worker       = string
      builder      = string
      fleet_secret = string
    })
  })
}

variable "vpc_id" {
  description = "VPC of the fleet."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id: the id of a VPC, vpc-…."
  }
}

variable "subnets" {
  description = "Private subnets by availability zone; each zone must have one of the instance types."
  type        = map(string)

  validation {
    condition     = length(var.subnets) >= 1 && alltrue([for zone in keys(var.subnets) : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone))])
    error_message = "subnets: a map such as {\"us-east-1a\" = \"subnet-…\"}, of one zone at least."
  }
}

variable "image" {
  description = "Image of the workers, with a fixed tag or digest."
  type        = string

  validation {
    condition     = can(regex("^[^\\s]+(:[A-Za-z0-9_.-]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "image: with a tag other than latest, or with a digest, so that every worker runs the same."
  }
}

variable "instance_types" {
  description = "Types that the pool may start, the best first; of one kind of GPU, since engines are built for it."
  type        = list(string)

  validation {
    condition     = length(var.instance_types) >= 1 && length(var.instance_types) <= 20 && length(distinct(var.instance_types)) == length(var.instance_types)
    error_message = "instance_types: 1 to 20 different ones."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : can(regex("^(g4dn|g5|g6|g6e|gr6|g7e|p4d|p4de|p5|p5e|p5en|p6-b200|p6-b300)\\.(metal|x?large|[0-9]+xlarge)$", type))])
    error_message = "instance_types: a pool needs x86 instances with whole NVIDIA GPUs: g4dn, g5, g6, g6e, gr6, g7e, p4d, p4de, p5, p5e, p5en, p6-b200 or p6-b300, such as g6.xlarge."
  }

  validation {
    condition     = length(distinct([for type in var.instance_types : lookup(local.gpus, split(".", type)[0], "unknown")])) == 1
    error_message = "instance_types: of different GPUs; make a pool for each, since engines are built for one."
  }
}

variable "instances_min" {
  description = "Instances that run whatever the demand. Null: 0 where CPU workers answer meanwhile; without them 0 has to be said, as calls after a rest are then refused for minutes, or wait that long."
  type        = number
  default     = null

  validation {
    condition     = var.instances_min != null || var.edge.has_fallback
    error_message = "instances_min: there are no CPU workers (edge.fallback.tasks is 0), so say it: 0 means that calls after a rest are refused with 503 and a Retry-After until an instance is there, which takes minutes, unless their deadline_ms (and the load balancer's idle_s) is longer than that; 1 that an instance is always paid for."
  }

  validation {
    condition     = var.instances_min == null || try(var.instances_min >= 0 && floor(var.instances_min) == var.instances_min, false)
    error_message = "instances_min: a whole number of at least 0."
  }
}

variable "instances_max" {
  description = "Most instances at once: what the pool can cost."
  type        = number

  validation {
    condition     = var.instances_max >= 1 && var.instances_max <= 100 && floor(var.instances_max) == var.instances_max && var.instances_max >= coalesce(var.instances_min, 0)
    error_message = "instances_max: a whole number, 1 to 100, and not less than instances_min."
  }
}

variable "spot" {
  description = "Which instances are on demand: the first `on_demand_base`, and `on_demand_percent` of the rest. The others are spot: cheaper, and taken away with a notice of two minutes."
  type = object({
    on_demand_base    = optional(number, 0)
    on_demand_percent = optional(number, 100)
  })
  default = {}

  validation {
    condition     = var.spot.on_demand_base >= 0 && var.spot.on_demand_base <= var.instances_max
    error_message = "spot: on_demand_base is 0 to instances_max."
  }

  validation {
    condition     = var.spot.on_demand_percent >= 0 && var.spot.on_demand_percent <= 100
    error_message = "spot: on_demand_percent is 0 to 100."
  }
}

variable "worker" {
  description = "Workers, each with one GPU: how many to an instance, their memory in MiB, and after how many idle seconds their instance is ended. `builds`: whether they may write the engines that they build into the registry."
  type = object({
    per_instance = optional(number, 1)
    memory_mib   = optional(number, 12288)
    rest_s       = optional(number, 600)
    builds       = optional(bool, true)
  })
  default = {}

  validation {
    condition     = var.worker.per_instance >= 1 && var.worker.per_instance <= 8 && floor(var.worker.per_instance) == var.worker.per_instance
    error_message = "worker: per_instance is 1 to 8, and not more than an instance has GPUs."
  }

  validation {
    condition     = var.worker.memory_mib >= 2048 && floor(var.worker.memory_mib) == var.worker.memory_mib && var.worker.rest_s >= 60 && var.worker.rest_s <= 86400
    error_message = "worker: memory_mib is a whole number of at least 2048, rest_s 60 (an instance takes minutes to start) to 86400 (for longer, say instances_min)."
  }
}

variable "volume_gb" {
  description = "Root volume (gp3) in GB: the image, and the local store where the instance has no NVMe of its own."
  type        = number
  default     = 100

  validation {
    condition     = var.volume_gb >= 50 && var.volume_gb <= 16000
    error_message = "volume_gb: 50 to 16000; the image alone has 10."
  }
}

variable "log_group_name" {
  description = "CloudWatch log group of the workers."
  type        = string
}
