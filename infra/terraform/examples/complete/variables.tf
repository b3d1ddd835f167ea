# Those that have to be set.

variable "region" {
  description = "Where everything is."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: a region of AWS, such as us-east-1."
  }
}

variable "domain" {
  description = "The zone of Route 53 that this account holds, such as example.com."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.domain))
    error_message = "domain: the name of a zone, in small letters and without a dot at its end, such as example.com."
  }
}

variable "images" {
  description = "The images that were pushed, each with a fixed tag: `edge` (edge, controller and CPU workers) and `pool` (GPU workers)."
  type = object({
    edge = string
    pool = string
  })
}

# Those that may be.

variable "name" {
  description = "Name of the fleet."
  type        = string
  default     = "tidepool"
}

variable "host" {
  description = "What callers dial, below the domain."
  type        = string
  default     = "models"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", var.host))
    error_message = "host: one label, such as models for models.example.com."
  }
}

variable "cidr" {
  description = "Addresses of the network."
  type        = string
  default     = "10.40.0.0/16"
}

variable "zones" {
  description = "How many availability zones."
  type        = number
  default     = 3

  validation {
    condition     = contains([2, 3, 4, 5, 6], var.zones)
    error_message = "zones: 2 to 6."
  }
}

variable "nat" {
  description = "\"per_zone\": a zone that fails takes no other's way out with it; \"single\": the cheapest."
  type        = string
  default     = "per_zone"
}

variable "admin_cidrs" {
  description = "Networks from which /admin/ may be reached, with an admin key."
  type        = list(string)
  default     = []
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = list(string)
  default     = []
}

variable "collector_image" {
  description = "Image of the AWS Distro for OpenTelemetry, pinned, such as public.ecr.aws/aws-observability/aws-otel-collector:v0.43.1; null: no Managed Prometheus."
  type        = string
  default     = null
}

variable "grafana" {
  description = "Whether there is a Managed Grafana (IAM Identity Center signs in); needs collector_image."
  type        = bool
  default     = false
}

variable "kms_key_arn" {
  description = "A key of yours for bucket, queue, secret, logs, alarms and metrics; null: AWS's own keys."
  type        = string
  default     = null
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes the models too, and the fleet's secret at once."
  type        = bool
  default     = false
}
