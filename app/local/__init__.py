"""A real Kafka and a real Redis as child processes, for the demo and the tests.

    with local_kafka() as kafka, local_redis() as redis:
        run_something(kafka.bootstrap, redis.url)

Nothing here is used in production: there, onecount is given addresses.
"""

from app.local.kafka import LocalKafka, local_kafka
from app.local.processes import LocalServiceError, NotInstalledError
from app.local.redis_cluster import LocalRedisCluster, local_redis_cluster
from app.local.redis_server import LocalRedis, local_redis

__all__ = [
    "LocalKafka",
    "LocalRedis",
    "LocalRedisCluster",
    "LocalServiceError",
    "NotInstalledError",
    "local_kafka",
    "local_redis",
    "local_redis_cluster",
]
