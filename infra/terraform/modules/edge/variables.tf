variable "name" {
  description = "Name of the fleet; everything here is named after it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'."
  }
}

variable "vpc_id" {
  description = "VPC of the fleet."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id: the id of a VPC, vpc-…."
  }
}

variable "public_subnet_ids" {
  description = "Subnets of the load balancer, in two zones at least."
  type        = list(string)

  validation {
    condition     = length(var.public_subnet_ids) >= 2
    error_message = "public_subnet_ids: a load balancer needs subnets in two zones at least."
  }
}

variable "private_subnet_ids" {
  description = "Subnets of the tasks, which get no public address."
  type        = list(string)

  validation {
    condition     = length(var.private_subnet_ids) >= 1 && length(setintersection(var.private_subnet_ids, var.public_subnet_ids)) == 0
    error_message = "private_subnet_ids: one at least, and none that is among public_subnet_ids."
  }
}

variable "certificate_arn" {
  description = "Certificate (ACM, of the same region) for the load balancer's HTTPS."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$", var.certificate_arn))
    error_message = "certificate_arn: arn:aws:acm:REGION:ACCOUNT:certificate/ID; a load balancer takes none of IAM users or files here."
  }
}

variable "registry" {
  description = "What module registry gives out: pass it whole."
  type = object({
    url              = string
    queue_url        = string
    fleet_secret_arn = string
    policy_arns = object({
      edge         = string
      edge_admin   = string
      controller   = string
      worker       = string
      fleet_secret = string
    })
  })
}

variable "image" {
  description = "Image of edge, controller and CPU workers, with a fixed tag or digest."
  type        = string

  validation {
    condition     = can(regex("^[^\\s]+(:[A-Za-z0-9_.-]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "image: with a tag other than latest, or with a digest, so that a restarted task runs what the others run."
  }
}

variable "log_group_names" {
  description = "CloudWatch log groups by tier."
  type = object({
    edge       = string
    controller = string
    fallback   = string
  })
}

variable "pools" {
  description = "The `config` of every pool: what the controller may start."
  type = list(object({
    name                 = string
    group                = string
    task_definition      = string
    container            = string
    instances_min        = number
    instances_max        = number
    workers_per_instance = number
    device               = string
    subnets              = list(string)
    security_groups      = list(string)
    rest_s               = number
  }))
  default = []

  validation {
    condition     = length(distinct([for pool in var.pools : pool.name])) == length(var.pools)
    error_message = "pools: two of one name."
  }

  validation {
    condition     = length(var.pools) <= 50 && sum(concat([0], [for pool in var.pools : pool.instances_max * pool.workers_per_instance])) <= 1000
    error_message = "pools: at most 50, with room for 1000 workers in all (instances_max x workers_per_instance): the controller refuses more."
  }
}

variable "tasks" {
  description = "Edge tasks: how many, their size in CPU units (1024: one core) and MiB, and when there are more of them. Metrics are scraped of 8 at most: their name gives no more."
  type = object({
    min                       = optional(number, 2)
    max                       = optional(number, 8)
    cpu                       = optional(number, 1024)
    memory_mib                = optional(number, 2048)
    cpu_percent_target        = optional(number, 60)
    requests_per_min_per_task = optional(number, 30000)
  })
  default = {}

  validation {
    condition     = var.tasks.min >= 1 && var.tasks.max >= var.tasks.min && var.tasks.max <= 100
    error_message = "tasks: 1 <= min <= max <= 100; edges never sleep, they hold the calls that wake a pool."
  }

  validation {
    condition     = contains(lookup(local.fargate_mib, tostring(var.tasks.cpu), []), var.tasks.memory_mib)
    error_message = "tasks: Fargate has no ${var.tasks.cpu} CPU units with ${var.tasks.memory_mib} MiB; ${local.fargate_sizes}."
  }

  validation {
    condition     = var.tasks.cpu_percent_target >= 10 && var.tasks.cpu_percent_target <= 90 && var.tasks.requests_per_min_per_task >= 1
    error_message = "tasks: cpu_percent_target is 10 to 90, requests_per_min_per_task at least 1."
  }
}

variable "fallback" {
  description = "CPU workers that answer for endpoints with `scale.fallback: cpu` while a pool has no instance: how many, and their size. 0 of them: no fallback, and every pool has to say its instances_min."
  type = object({
    tasks      = optional(number, 1)
    cpu        = optional(number, 2048)
    memory_mib = optional(number, 4096)
  })
  default = {}

  validation {
    condition     = var.fallback.tasks >= 0 && var.fallback.tasks <= 50 && floor(var.fallback.tasks) == var.fallback.tasks
    error_message = "fallback: tasks is a whole number, 0 to 50."
  }

  validation {
    condition     = contains(lookup(local.fargate_mib, tostring(var.fallback.cpu), []), var.fallback.memory_mib)
    error_message = "fallback: Fargate has no ${var.fallback.cpu} CPU units with ${var.fallback.memory_mib} MiB; ${local.fargate_sizes}."
  }
}

variable "balancer" {
  description = "The load balancer: who may reach it (calls need a key in any case), and after how many seconds without a byte it gives up a call, with 504. No call waits longer for its first byte, whatever its deadline_ms; edges keep connections for 15 s more."
  type = object({
    ingress_cidrs = optional(list(string), ["0.0.0.0/0"])
    idle_s        = optional(number, 60)
  })
  default = {}

  validation {
    condition     = alltrue([for cidr in var.balancer.ingress_cidrs : can(cidrnetmask(cidr))])
    error_message = "balancer: ingress_cidrs are IPv4 networks such as 203.0.113.0/24."
  }

  validation {
    condition     = var.balancer.idle_s >= 1 && var.balancer.idle_s <= 4000 && floor(var.balancer.idle_s) == var.balancer.idle_s
    error_message = "balancer: idle_s is a whole number, 1 to 4000, as AWS has it; at least the longest deadline_ms of an endpoint, or its calls end with 504."
  }
}

variable "admin_cidrs" {
  description = "Who may reach /admin/ through the load balancer, with an admin key; nobody where it is empty."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.admin_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]), 0) >= 8]) && length(var.admin_cidrs) <= 4
    error_message = "admin_cidrs: at most 4 IPv4 networks of /8 or smaller; the whole internet is not one of them."
  }
}

variable "scraper_security_group_ids" {
  description = "Security groups of what scrapes metrics: nobody else reaches port 8002."
  type        = list(string)
  default     = []
}

variable "device_price_usd_per_h" {
  description = "Prices of devices for the metrics of cost, such as \"gpu=g6.xlarge\"; empty: no such metrics."
  type        = string
  default     = ""
}
