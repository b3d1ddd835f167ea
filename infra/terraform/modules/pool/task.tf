# One task is one worker process with one GPU. The controller starts it on an instance that it
# chooses, and tells it who it is (TIDEPOOL_NODE_ID).

locals {
  container = "pool"
  stop_s    = 120 # from SIGTERM to SIGKILL: what a spot instance has left after its notice
}

resource "aws_ecs_task_definition" "worker" {
  family                   = local.full_name
  requires_compatibilities = ["EC2"]
  network_mode             = "awsvpc"
  task_role_arn            = aws_iam_role.worker.arn
  execution_role_arn       = aws_iam_role.execution.arn

  placement_constraints {
    type       = "memberOf"
    expression = "attribute:tidepool.pool == ${var.name}"
  }

  # Made for a task and removed with it: two workers on an instance never share a folder.
  volume {
    name = "data"

    docker_volume_configuration {
      scope  = "task"
      driver = "local"
    }
  }

  container_definitions = jsonencode([{
    name                   = local.container
    image                  = var.image
    essential              = true
    memory                 = var.worker.memory_mib
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    stopTimeout            = local.stop_s
    resourceRequirements   = [{ type = "GPU", value = "1" }]
    environment            = [for name in ["AWS_DEFAULT_REGION", "AWS_REGION"] : { name = name, value = local.region }]
    secrets                = [{ name = "TIDEPOOL_FLEET_SECRET", valueFrom = var.registry.fleet_secret_arn }]
    portMappings           = [{ containerPort = local.worker_port, hostPort = local.worker_port, protocol = "tcp" }]
    mountPoints            = [{ sourceVolume = "data", containerPath = "/data", readOnly = false }]
    command = [
      "pool", "--device", "cuda:0", "--registry", var.registry.url, "--data", "/data",
      "--listen-host", "ecs-task", "--worker-port", tostring(local.worker_port), "--workers", "1",
    ]
    # Engines that are compiled are loaded from /tmp, so it is not noexec, as it would be by itself.
    linuxParameters = {
      initProcessEnabled = true
      sharedMemorySize   = 1024
      tmpfs              = [{ containerPath = "/tmp", size = 1024, mountOptions = ["rw", "exec", "nosuid", "nodev"] }]
    }
    healthCheck = {
      command     = ["CMD", "python", "-m", "infra.health", "pool"]
      interval    = 10
      timeout     = 5
      retries     = 3
      startPeriod = 60
    }
    ulimits = [{ name = "nofile", softLimit = 65536, hardLimit = 65536 }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = var.log_group_name
        awslogs-region        = local.region
        awslogs-stream-prefix = var.name
      }
    }
  }])
}
