# The bucket that holds everything, and the queue that tells the controller of changes.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  bucket_name = coalesce(var.bucket_name, "${var.name}-registry-${data.aws_caller_identity.current.account_id}")
  bucket_arn  = "arn:${data.aws_partition.current.partition}:s3:::${local.bucket_name}"
  key_arns    = var.kms_key_arn == null ? [] : [var.kms_key_arn]

  # What the controller looks at anew: specs with their states, keys, wishes, and versions that a
  # spec named before they were there.
  watched = [
    { prefix = "endpoints/", suffix = "" },
    { prefix = "keys.json", suffix = "" },
    { prefix = "builds/", suffix = "" },
    { prefix = "models/", suffix = "/manifest.json" },
  ]
}

resource "aws_s3_bucket" "registry" {
  # checkov:skip=CKV_AWS_18:access logs of a bucket cost more than they tell here; changes are in audit/, and CloudTrail's data events can be turned on for the account
  # checkov:skip=CKV_AWS_144:two regions are postponed; what is lost with a region can be published again
  # checkov:skip=CKV_AWS_145:KMS is an option (kms_key_arn); its requests cost, and S3's own key encrypts as well
  bucket        = local.bucket_name
  force_destroy = var.force_destroy
}

resource "aws_s3_bucket_ownership_controls" "registry" {
  bucket = aws_s3_bucket.registry.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "registry" {
  bucket                  = aws_s3_bucket.registry.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "registry" {
  bucket = aws_s3_bucket.registry.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "registry" {
  bucket = aws_s3_bucket.registry.id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_policy" "registry" {
  bucket = aws_s3_bucket.registry.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [local.bucket_arn, "${local.bucket_arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  # Two changes of a bucket's access at once are refused.
  depends_on = [aws_s3_bucket_public_access_block.registry]
}

# The leader record is written every few seconds. Nothing else ever expires: engines, models and
# blobs are removed by commands that know who uses them.
resource "aws_s3_bucket_lifecycle_configuration" "registry" {
  # checkov:skip=CKV_AWS_300:no rule may reach engines/, models/ or blobs/; who uploads in parts ends what it began
  bucket = aws_s3_bucket.registry.id

  rule {
    id     = "replaced-leader-records"
    status = "Enabled"

    filter {
      prefix = "control/"
    }

    noncurrent_version_expiration {
      noncurrent_days = var.replaced_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.registry]
}

# A message only says that there is something to look at: one that is an hour old says nothing.
resource "aws_sqs_queue" "changes" {
  name                       = "${var.name}-registry-changes"
  message_retention_seconds  = 3600
  receive_wait_time_seconds  = 20
  visibility_timeout_seconds = 30
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  kms_master_key_id          = var.kms_key_arn
}

resource "aws_sqs_queue_policy" "changes" {
  queue_url = aws_sqs_queue.changes.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "ThisBucketOnly"
      Effect    = "Allow"
      Principal = { Service = "s3.amazonaws.com" }
      Action    = "sqs:SendMessage"
      Resource  = aws_sqs_queue.changes.arn
      Condition = {
        ArnEquals    = { "aws:SourceArn" = local.bucket_arn }
        StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id }
      }
    }]
  })
}

resource "aws_s3_bucket_notification" "changes" {
  bucket = aws_s3_bucket.registry.id

  dynamic "queue" {
    for_each = local.watched

    content {
      queue_arn     = aws_sqs_queue.changes.arn
      events        = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
      filter_prefix = queue.value.prefix
      filter_suffix = queue.value.suffix
    }
  }

  depends_on = [aws_sqs_queue_policy.changes]
}
