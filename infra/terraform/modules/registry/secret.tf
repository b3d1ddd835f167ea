# The fleet's secret: by it edges, workers and the controller know each other, and engines are
# signed. Its first value is chance that goes to AWS and is written down nowhere else, as the
# argument is write-only: no plan and no state holds it. A new one is put beside it as `NEW,OLD` by
# the AWS CLI, and Terraform leaves that alone.

resource "aws_secretsmanager_secret" "fleet" {
  # checkov:skip=CKV2_AWS_57:it is rotated by hand in three steps, since tasks read it when they start
  # checkov:skip=CKV_AWS_149:KMS is an option (kms_key_arn); the account's own key encrypts as well
  name                    = "${var.name}/fleet-secret"
  description             = "TIDEPOOL_FLEET_SECRET of ${var.name}: NEW, or NEW,OLD during a rotation"
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.secret_recovery_days
}

resource "aws_secretsmanager_secret_version" "fleet" {
  secret_id                = aws_secretsmanager_secret.fleet.id
  secret_string_wo         = sha256("${uuid()}${uuid()}${uuid()}") # 366 bits of chance
  secret_string_wo_version = 1
}
