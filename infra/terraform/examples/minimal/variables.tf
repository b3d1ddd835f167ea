# The three that have to be set.

variable "region" {
  description = "Where everything is."
  type        = string

  validation {
    condition     = contains(local.regions, var.region)
    error_message = "region: ${var.region} is no region of AWS with these GPUs. Those known here: ${join(", ", local.regions)}."
  }
}

variable "certificate_arn" {
  description = "Certificate (ACM, of the same region) of the domain that callers use."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$", var.certificate_arn))
    error_message = "certificate_arn: arn:aws:acm:REGION:ACCOUNT:certificate/ID."
  }

  validation {
    condition     = try(split(":", var.certificate_arn)[3], "") == var.region
    error_message = "certificate_arn: the certificate is of ${try(split(":", var.certificate_arn)[3], "no region")}, not of ${var.region}; a load balancer takes certificates of its own region only."
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

variable "zones" {
  description = "Two availability zones or more, of which one has the GPU; null: the first two that have it. Name them (output `zones`) in what is to last: a zone that AWS adds would move the network."
  type        = list(string)
  default     = null
}

variable "instance_type" {
  description = "Type of the GPU instances."
  type        = string
  default     = "g6.xlarge"
}

variable "instances_max" {
  description = "Most GPU instances at once."
  type        = number
  default     = 2
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = list(string)
  default     = []
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes the models too, and the fleet's secret at once."
  type        = bool
  default     = false
}
