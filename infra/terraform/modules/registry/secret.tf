# The fleet's secret: by it edges, workers and the controller know each other, and engines are
# signed. Written once and never read, so that no state holds it; a new one is put beside it as
# `NEW,OLD` by the AWS CLI, and Terraform leaves it alone.

ephemeral "aws_secretsmanager_random_password" "fleet" {
  password_length     = 64
  exclude_punctuation = true # a comma parts the new secret from the old
}

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
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.fleet.random_password
  secret_string_wo_version = 1
}
