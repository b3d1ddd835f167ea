#!/bin/bash
# Joins the cluster. Comes after what the image wrote there itself, which turns the GPU on.
cat >>/etc/ecs/ecs.config <<'EOF'
ECS_CLUSTER=${cluster}
ECS_INSTANCE_ATTRIBUTES={"tidepool.pool": "${pool}"}
ECS_ENABLE_SPOT_INSTANCE_DRAINING=true
ECS_AWSVPC_BLOCK_IMDS=true
ECS_DISABLE_PRIVILEGED=true
ECS_IMAGE_PULL_BEHAVIOR=prefer-cached
ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=10m
EOF

# The workers' local stores are Docker's volumes: on the instance's own NVMe, where it has one.
disk=$(lsblk --nodeps --noheadings --output NAME,MODEL | awk '/Instance Storage/ {print "/dev/" $1; exit}')
if [ -n "$disk" ]; then
    systemctl stop docker.socket docker
    mkfs.xfs -f "$disk" && mkdir -p /var/lib/docker/volumes && mount -o noatime "$disk" /var/lib/docker/volumes
    systemctl start docker.socket docker
fi
