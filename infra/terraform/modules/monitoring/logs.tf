# A log group for each tier. They depend on nothing, so edge and pool may take their names from here
# though the alarms below take names from edge and pool.

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_158:kms_key_arn gives a key of yours; without one CloudWatch encrypts with its own.
  #checkov:skip=CKV_AWS_338:A year of every request's line costs more than it tells; the audit trail is in the registry, and log_retention_days may be 365.
  for_each = toset(["edge", "controller", "fallback", "pool", "collector"])

  name              = "/tidepool/${var.name}/${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}
