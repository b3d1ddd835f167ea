# What each tier runs: the command lines are those of `tidepool edge --help` and so on.

locals {
  stop_s = 60 # from SIGTERM to SIGKILL; the load balancer lets go of an edge within 45

  environment = { AWS_DEFAULT_REGION = local.region, AWS_REGION = local.region }

  containers = {
    edge = {
      cpu        = var.tasks.cpu
      memory_mib = var.tasks.memory_mib
      ports      = [local.port, local.admin_port]
      environment = var.device_price_usd_per_h == "" ? {} : {
        TIDEPOOL_DEVICE_PRICE_USD_PER_H = var.device_price_usd_per_h
      }
      command = [
        "edge", "--registry", var.registry.url, "--data", "/data",
        "--host", "0.0.0.0", "--port", tostring(local.port),
        "--admin-host", "ecs-task", "--admin-port", tostring(local.admin_port),
        "--keep-alive-s", tostring(var.balancer.idle_s + 15),
        "--lame-duck-s", "15", # two failed checks, 5 s apart, and a third of that again
      ]
    }
    controller = {
      cpu        = 256
      memory_mib = 1024
      ports      = [local.control_port]
      environment = length(var.pools) == 0 ? {} : {
        TIDEPOOL_POOLS = jsonencode({ fleet = var.name, cluster = aws_ecs_cluster.fleet.name, pools = var.pools })
      }
      command = [
        "controller", "--registry", var.registry.url, "--data", "/data",
        "--listen", "tcp://0.0.0.0:${local.control_port}",
        "--advertise", "tcp://ecs-task:${local.control_port}",
        "--notifications", var.registry.queue_url,
      ]
    }
    fallback = {
      cpu         = var.fallback.cpu
      memory_mib  = var.fallback.memory_mib
      ports       = [local.worker_port]
      environment = {}
      command = [
        "pool", "--fallback", "--device", "cpu", "--registry", var.registry.url, "--data", "/data",
        "--listen-host", "ecs-task", "--worker-port", tostring(local.worker_port), "--workers", "1",
      ]
    }
  }

  running = { for tier in local.tiers : tier => local.containers[tier] }
}

resource "aws_ecs_task_definition" "tier" {
  for_each = local.running

  family                   = "${var.name}-${each.key}"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = each.value.cpu
  memory                   = each.value.memory_mib
  task_role_arn            = aws_iam_role.task[each.key].arn
  execution_role_arn       = aws_iam_role.execution.arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  volume {
    name = "data"
  }

  volume {
    name = "tmp"
  }

  container_definitions = jsonencode([{
    name                   = each.key
    image                  = var.image
    essential              = true
    command                = each.value.command
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    stopTimeout            = local.stop_s
    environment            = [for name, value in merge(local.environment, each.value.environment) : { name = name, value = value }]
    secrets                = [{ name = "TIDEPOOL_FLEET_SECRET", valueFrom = var.registry.fleet_secret_arn }]
    portMappings           = [for port in each.value.ports : { containerPort = port, hostPort = port, protocol = "tcp" }]
    mountPoints = [
      { sourceVolume = "data", containerPath = "/data", readOnly = false },
      { sourceVolume = "tmp", containerPath = "/tmp", readOnly = false },
    ]
    linuxParameters = { initProcessEnabled = true }
    ulimits         = [{ name = "nofile", softLimit = 65536, hardLimit = 65536 }]
    healthCheck = {
      command     = ["CMD", "python", "-m", "infra.health", each.value.command[0]]
      interval    = 10
      timeout     = 5
      retries     = 3
      startPeriod = 60
    }
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = local.log_group_names[each.key]
        awslogs-region        = local.region
        awslogs-stream-prefix = each.key
      }
    }
  }])
}
