#!/usr/bin/env bash
# Gives each of onecount's principals the rights that it needs in Kafka, and no others; may be repeated.
#
#   KAFKA_ACLS="bin/kafka-acls.sh --bootstrap-server kafka:9093 --command-config admin.properties" deploy/kafka-acls.sh
#
# Topics and groups are those of the same ONECOUNT_* variables that the workers have. Who is who: COUNTER, AGGREGATOR, MATCHER,
# PRODUCER (of raw events), IMPORTER (`onecount import`), OPERATOR (check, topics, verify, rebuild, reset, replay, dlq, forget), PAGE (serve),
# DESK (desk), CRM (who tells the desk of follow-ups), BOOKS (who tells it of orders, of what platforms claim, and of spend),
# GATEWAY.
set -euo pipefail
: "${KAFKA_ACLS:?set KAFKA_ACLS to the kafka-acls command with its connection options}"

counter=${COUNTER:-User:onecount-counter}
aggregator=${AGGREGATOR:-User:onecount-aggregator}
matcher=${MATCHER:-User:onecount-matcher}
producer=${PRODUCER:-User:onecount-producer}
importer=${IMPORTER:-User:onecount-importer}
operator=${OPERATOR:-User:onecount-operator}
page=${PAGE:-User:onecount-page}
gateway=${GATEWAY:-User:onecount-gateway}
desk=${DESK:-User:onecount-desk}
crm=${CRM:-User:onecount-crm}
books=${BOOKS:-User:onecount-books}

counter_group=${ONECOUNT_COUNTER_GROUP:-onecount.counter}
aggregator_group=${ONECOUNT_AGGREGATOR_GROUP:-onecount.aggregator}
matcher_group=${ONECOUNT_MATCHER_GROUP:-onecount.matcher}
desk_group=${ONECOUNT_DESK_GROUP:-onecount.desk}
rekeyed=(--topic "${ONECOUNT_REKEYED_TOPIC:-onecount.rekeyed}")
dlq=(--topic "${ONECOUNT_DLQ_TOPIC:-ads.events.dlq}")
handled=(--topic "${ONECOUNT_DLQ_TOPIC:-ads.events.dlq}.handled")
deltas=(--topic "${ONECOUNT_DELTAS_TOPIC:-onecount.deltas}")
clicks=(--topic "${ONECOUNT_CLICKS_TOPIC:-onecount.clicks}")
policy=(--topic "${ONECOUNT_POLICY_TOPIC:-onecount.policy}")
attributed=(--topic "${ONECOUNT_ATTRIBUTED_TOPIC:-conversions.attributed}")
counts=(--topic "${ONECOUNT_COUNTS_TOPIC:-conversions.counts}")
journeys=(--topic "${ONECOUNT_JOURNEYS_TOPIC:-conversions.journeys}")
models=(--topic "${ONECOUNT_MODELS_TOPIC:-conversions.models}")
told=(--topic "${ONECOUNT_FOLLOWUPS_TOPIC:-leads.followups}")
rollups=(--topic "${ONECOUNT_ROLLUPS_TOPIC:-conversions.rollups}")
leads=(--topic "${ONECOUNT_LEADS_TOPIC:-leads}" --topic "${ONECOUNT_OVERDUE_TOPIC:-leads.overdue}" --topic "${ONECOUNT_FOLLOWUPS_TOPIC:-leads.followups}.dlq")
money=(--topic "${ONECOUNT_ORDERS_TOPIC:-revenue.orders}" --topic "${ONECOUNT_REPORTED_TOPIC:-platforms.reported}" --topic "${ONECOUNT_SPEND_TOPIC:-spend}")
checked=(--topic "${ONECOUNT_RECONCILIATION_TOPIC:-conversions.reconciliation}" --topic "${ONECOUNT_RETURN_TOPIC:-conversions.return}" --topic "${ONECOUNT_DESK_DLQ_TOPIC:-desk.dlq}")
IFS=', ' read -ra names <<< "${ONECOUNT_EVENTS_TOPICS:-ads.events}"
events=()
for name in "${names[@]}"; do events+=(--topic "$name"); done
own=("${rekeyed[@]}" "${dlq[@]}" "${deltas[@]}" "${clicks[@]}" "${policy[@]}" "${attributed[@]}" "${counts[@]}" "${journeys[@]}" "${models[@]}")

allow() { # principal, operations (comma-separated), resources...
  local principal=$1 operation operations=()
  for operation in ${2//,/ }; do operations+=(--operation "$operation"); done
  $KAFKA_ACLS --add --allow-principal "$principal" "${operations[@]}" "${@:3}"
}

# Clients that only read a log back name a group, too: they never join it, but look for its coordinator.
for principal in "$counter" "$aggregator" "$matcher" "$importer" "$operator" "$page" "$desk" "$gateway"; do allow "$principal" Describe --group "$counter_group.read"; done

# Read and Write imply Describe. An idempotent or transactional producer needs no right on the cluster.
allow "$counter" Read "${events[@]}" "${rekeyed[@]}"
allow "$counter" Write "${rekeyed[@]}" "${dlq[@]}" "${clicks[@]}"
allow "$counter" Read,Write "${deltas[@]}" "${attributed[@]}" "${journeys[@]}" "${models[@]}" "${policy[@]}" # outputs are read back after lost state
allow "$counter" Read --group "$counter_group"
allow "$counter" Write --transactional-id "$counter_group-" --resource-pattern-type prefixed

allow "$aggregator" Read "${deltas[@]}"
allow "$aggregator" Read,Write "${counts[@]}" "${policy[@]}"
allow "$aggregator" Read --group "$aggregator_group"
allow "$aggregator" Write --transactional-id "$aggregator_group-" --resource-pattern-type prefixed
allow "$aggregator" Write --transactional-id "$counter_group-policy-" --resource-pattern-type prefixed # whoever starts first records the policy

allow "$matcher" Read "${clicks[@]}" "${rekeyed[@]}" # the latter where its offsets are gone
allow "$matcher" Write "${rekeyed[@]}" "${dlq[@]}"
allow "$matcher" Describe "${events[@]}" # how many partitions users have
allow "$matcher" Read,Write "${policy[@]}"
allow "$matcher" Read --group "$matcher_group"
allow "$matcher" Write --transactional-id "$matcher_group-" --resource-pattern-type prefixed
allow "$matcher" Write --transactional-id "$counter_group-policy-" --resource-pattern-type prefixed

allow "$producer" Write "${events[@]}"

allow "$importer" Write,DescribeConfigs "${events[@]}"
allow "$importer" Read "${policy[@]}" # each row is judged by the version of its time

allow "$operator" Create,Read,DescribeConfigs "${events[@]}" "${own[@]}" "${handled[@]}"
allow "$operator" Delete "${own[@]}" # for reset, which leaves the raw topics alone, and what was sent to them again
allow "$operator" Write "${events[@]}" "${handled[@]}" # for dlq retry and drop
allow "$operator" Write --transactional-id "$counter_group.dlq"
allow "$operator" Write "${attributed[@]}" "${journeys[@]}" "${models[@]}" # deletions, for forget
allow "$operator" Describe,Delete --group "$counter_group" --group "$aggregator_group" --group "$matcher_group"
allow "$operator" Describe --group "$counter_group.verify"

# A replay's workers run as the operator, by the live names with `.replay-` and its id behind them.
shadows=()
for name in "${events[@]}" "${own[@]}"; do [ "$name" = --topic ] || shadows+=(--topic "$name.replay-"); done
allow "$operator" Create,Read,Write,Delete,DescribeConfigs "${shadows[@]}" --resource-pattern-type prefixed
allow "$operator" Read,Delete --group "$counter_group.replay-" --group "$aggregator_group.replay-" --group "$matcher_group.replay-" --resource-pattern-type prefixed
allow "$operator" Write --transactional-id "$counter_group.replay-" --transactional-id "$aggregator_group.replay-" --resource-pattern-type prefixed

allow "$operator" Create,Read,DescribeConfigs "${told[@]}" "${leads[@]}" "${rollups[@]}" "${money[@]}" "${checked[@]}"
allow "$operator" Delete "${leads[@]}" "${rollups[@]}" "${checked[@]}" # for reset, which leaves what others told the desk
allow "$operator" Describe --group "$desk_group"

allow "$desk" Read "${journeys[@]}" "${counts[@]}" "${attributed[@]}" "${dlq[@]}" "${told[@]}" "${money[@]}" "${policy[@]}"
allow "$desk" Read,Write "${leads[@]}" "${rollups[@]}" "${checked[@]}" # they are read back by a desk that begins
allow "$desk" Read --group "$desk_group"
allow "$desk" Write --transactional-id "$desk_group"

allow "$crm" Write "${told[@]}"
allow "$books" Write "${money[@]}"

allow "$page" Read "${counts[@]}" "${attributed[@]}" "${dlq[@]}"

allow "$gateway" Write "${events[@]}"
allow "$gateway" Read "${policy[@]}"
