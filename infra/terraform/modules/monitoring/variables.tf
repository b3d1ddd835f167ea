variable "name" {
  description = "The fleet's name; every resource's name starts with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'."
  }
}

variable "log_retention_days" {
  description = "How long the tiers' logs are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days: one that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, ... 3653."
  }
}

variable "kms_key_arn" {
  description = "A key of yours for logs, alarms and metrics; null: AWS's own keys. Its policy must admit logs, cloudwatch and aps of this region."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn: the ARN of a key: arn:aws:kms:REGION:ACCOUNT:key/ID."
  }
}

variable "alarm_emails" {
  description = "Who gets a mail for each alarm; each must confirm the first one."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for address in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", address))])
    error_message = "alarm_emails: mail addresses."
  }
}

variable "load_balancer" {
  description = "The load balancer and its target group, as CloudWatch names them."
  type = object({
    arn_suffix              = string
    target_group_arn_suffix = string
  })

  validation {
    condition     = !startswith(var.load_balancer.arn_suffix, "arn:") && !startswith(var.load_balancer.target_group_arn_suffix, "arn:")
    error_message = "load_balancer: takes arn_suffix, not arn: CloudWatch's dimensions hold what stands behind loadbalancer/ and :targetgroup."
  }
}

variable "cluster_name" {
  description = "The ECS cluster of all tiers."
  type        = string
}

variable "services" {
  description = "Names of the ECS services; no fallback: null."
  type = object({
    edge       = string
    controller = string
    fallback   = optional(string)
  })
}

variable "pools" {
  description = "Pools of GPU instances by name: their auto scaling groups and bounds."
  type = map(object({
    autoscaling_group_name = string
    instances_min          = number
    instances_max          = number
  }))
  default = {}
}

variable "queue_name" {
  description = "The queue of the registry's notifications, which the controller alone empties."
  type        = string
}

variable "limits" {
  description = "From when on an alarm goes off: answers with an error of the server in percent, the slowest 1 % of answers in seconds, minutes that asked-for instances may stay away, hours that instances may run though nobody calls."
  type = object({
    errors_percent   = optional(number, 1)
    latency_p99_s    = optional(number, 2)
    instances_late_m = optional(number, 15)
    unused_h         = optional(number, 2)
  })
  default = {}

  validation {
    condition     = var.limits.errors_percent > 0 && var.limits.errors_percent <= 100
    error_message = "limits.errors_percent: above 0 and up to 100."
  }
  validation {
    condition     = var.limits.latency_p99_s > 0
    error_message = "limits.latency_p99_s: above 0."
  }
  validation {
    condition     = var.limits.instances_late_m >= 5 && floor(var.limits.instances_late_m) == var.limits.instances_late_m
    error_message = "limits.instances_late_m: whole minutes, 5 or more: an instance takes some to start."
  }
  validation {
    condition     = var.limits.unused_h >= 1 && var.limits.unused_h <= 24 && floor(var.limits.unused_h) == var.limits.unused_h
    error_message = "limits.unused_h: whole hours, 1 to 24."
  }
}

variable "prometheus" {
  description = "Amazon Managed Prometheus and a collector that scrapes the edges: where it runs, the image of the AWS Distro for OpenTelemetry (pinned), the name all edges answer to, files of rules by name. null: none."
  type = object({
    cluster_arn            = string
    vpc_id                 = string
    subnet_ids             = list(string)
    edge_security_group_id = string
    edge_discovery_name    = string
    collector_image        = string
    rules                  = optional(map(string), {})
  })
  default = null

  validation {
    condition     = try(can(regex("(:[^:/]+|@sha256:[0-9a-f]{64})$", var.prometheus.collector_image)) && !endswith(var.prometheus.collector_image, ":latest"), var.prometheus == null)
    error_message = "prometheus.collector_image: pinned by a tag or a digest, and not be :latest."
  }
  validation {
    condition     = var.prometheus == null ? true : alltrue([for name, rules in var.prometheus.rules : can(yamldecode(rules).groups)])
    error_message = "prometheus.rules: the text of Prometheus rule files, each with its groups."
  }
}

variable "grafana" {
  description = "Amazon Managed Grafana beside it, with sign-in by AWS_SSO (IAM Identity Center) or SAML; null: none. Needs prometheus."
  type = object({
    authentication = optional(string, "AWS_SSO")
  })
  default = null

  validation {
    condition     = var.grafana == null ? true : contains(["AWS_SSO", "SAML"], var.grafana.authentication)
    error_message = "grafana.authentication: \"AWS_SSO\" or \"SAML\"."
  }
  validation {
    condition     = var.grafana == null || var.prometheus != null
    error_message = "grafana: it shows what prometheus holds: set prometheus as well."
  }
}
