variable "name" {
  description = "Name of the fleet; the bucket, the queue and the policies are named after it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'."
  }
}

variable "bucket_name" {
  description = "Name of the bucket; null: NAME-registry-ACCOUNT, since the names of buckets are those of all accounts."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name: 3 to 63 of a-z, 0-9 and '-'; dots would break TLS to the bucket."
  }
}

variable "kms_key_arn" {
  description = "KMS key for the bucket, the queue and the fleet's secret; null: the keys of S3, SQS and Secrets Manager themselves. Its policy must let S3 use it for the queue."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "kms_key_arn: the ARN of a key (arn:aws:kms:REGION:ACCOUNT:key/ID), not of an alias."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes a bucket that still holds models."
  type        = bool
  default     = false
}

variable "replaced_days" {
  description = "Days for which replaced versions of the leader record and of what was learned are kept; a busy controller writes thousands a day. Nothing else ever expires."
  type        = number
  default     = 1

  validation {
    condition     = var.replaced_days >= 1 && floor(var.replaced_days) == var.replaced_days
    error_message = "replaced_days: a whole number of at least 1."
  }
}

variable "secret_recovery_days" {
  description = "Days in which a deleted fleet secret can be restored; 0: it is gone at once."
  type        = number
  default     = 7

  validation {
    condition     = var.secret_recovery_days == 0 || (var.secret_recovery_days >= 7 && var.secret_recovery_days <= 30)
    error_message = "secret_recovery_days: 0, or 7 to 30."
  }
}
