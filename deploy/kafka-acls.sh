#!/usr/bin/env bash
# Gives each of onecount's principals the rights that it needs in Kafka, and no others; may be repeated.
#
#   KAFKA_ACLS="bin/kafka-acls.sh --bootstrap-server kafka:9093 --command-config admin.properties" deploy/kafka-acls.sh
#
# Topics and groups are those of the same ONECOUNT_* variables that the workers have. Who is who: COUNTER, AGGREGATOR,
# PRODUCER (of raw events), IMPORTER (`onecount import`), OPERATOR (check, topics, verify, rebuild, reset, replay, dlq), PAGE (serve),
# GATEWAY.
set -euo pipefail
: "${KAFKA_ACLS:?set KAFKA_ACLS to the kafka-acls command with its connection options}"

counter=${COUNTER:-User:onecount-counter}
aggregator=${AGGREGATOR:-User:onecount-aggregator}
producer=${PRODUCER:-User:onecount-producer}
importer=${IMPORTER:-User:onecount-importer}
operator=${OPERATOR:-User:onecount-operator}
page=${PAGE:-User:onecount-page}
gateway=${GATEWAY:-User:onecount-gateway}

counter_group=${ONECOUNT_COUNTER_GROUP:-onecount.counter}
aggregator_group=${ONECOUNT_AGGREGATOR_GROUP:-onecount.aggregator}
rekeyed=(--topic "${ONECOUNT_REKEYED_TOPIC:-onecount.rekeyed}")
dlq=(--topic "${ONECOUNT_DLQ_TOPIC:-ads.events.dlq}")
handled=(--topic "${ONECOUNT_DLQ_TOPIC:-ads.events.dlq}.handled")
deltas=(--topic "${ONECOUNT_DELTAS_TOPIC:-onecount.deltas}")
policy=(--topic "${ONECOUNT_POLICY_TOPIC:-onecount.policy}")
attributed=(--topic "${ONECOUNT_ATTRIBUTED_TOPIC:-conversions.attributed}")
counts=(--topic "${ONECOUNT_COUNTS_TOPIC:-conversions.counts}")
IFS=', ' read -ra names <<< "${ONECOUNT_EVENTS_TOPICS:-ads.events}"
events=()
for name in "${names[@]}"; do events+=(--topic "$name"); done
own=("${rekeyed[@]}" "${dlq[@]}" "${deltas[@]}" "${policy[@]}" "${attributed[@]}" "${counts[@]}")

allow() { # principal, operations (comma-separated), resources...
  local principal=$1 operation operations=()
  for operation in ${2//,/ }; do operations+=(--operation "$operation"); done
  $KAFKA_ACLS --add --allow-principal "$principal" "${operations[@]}" "${@:3}"
}

# Clients that only read a log back name a group, too: they never join it, but look for its coordinator.
for principal in "$counter" "$aggregator" "$operator" "$page" "$gateway"; do allow "$principal" Describe --group "$counter_group.read"; done

# Read and Write imply Describe. An idempotent or transactional producer needs no right on the cluster.
allow "$counter" Read "${events[@]}" "${rekeyed[@]}"
allow "$counter" Write "${rekeyed[@]}" "${dlq[@]}"
allow "$counter" Read,Write "${deltas[@]}" "${attributed[@]}" "${policy[@]}" # outputs are read back after lost state
allow "$counter" Read --group "$counter_group"
allow "$counter" Write --transactional-id "$counter_group-" --resource-pattern-type prefixed

allow "$aggregator" Read "${deltas[@]}"
allow "$aggregator" Read,Write "${counts[@]}" "${policy[@]}"
allow "$aggregator" Read --group "$aggregator_group"
allow "$aggregator" Write --transactional-id "$aggregator_group-" --resource-pattern-type prefixed
allow "$aggregator" Write --transactional-id "$counter_group-policy-" --resource-pattern-type prefixed # whoever starts first records the policy

allow "$producer" Write "${events[@]}"

allow "$importer" Write,DescribeConfigs "${events[@]}"

allow "$operator" Create,Read,DescribeConfigs "${events[@]}" "${own[@]}" "${handled[@]}"
allow "$operator" Delete "${own[@]}" # for reset, which leaves the raw topics alone, and what was sent to them again
allow "$operator" Write "${events[@]}" "${handled[@]}" # for dlq retry and drop
allow "$operator" Write --transactional-id "$counter_group.dlq"
allow "$operator" Describe,Delete --group "$counter_group" --group "$aggregator_group"
allow "$operator" Describe --group "$counter_group.verify"

# A replay's workers run as the operator, by the live names with `.replay-` and its id behind them.
shadows=()
for name in "${events[@]}" "${own[@]}"; do [ "$name" = --topic ] || shadows+=(--topic "$name.replay-"); done
allow "$operator" Create,Read,Write,Delete,DescribeConfigs "${shadows[@]}" --resource-pattern-type prefixed
allow "$operator" Read,Delete --group "$counter_group.replay-" --group "$aggregator_group.replay-" --resource-pattern-type prefixed
allow "$operator" Write --transactional-id "$counter_group.replay-" --transactional-id "$aggregator_group.replay-" --resource-pattern-type prefixed

allow "$page" Read "${counts[@]}" "${attributed[@]}" "${dlq[@]}"

allow "$gateway" Write "${events[@]}"
allow "$gateway" Read "${policy[@]}"
