/* The tables of postgres_copy.py. Times are UTC. A row's identity is its Kafka key, kept as a hash: a key with a long
   landing page is longer than PostgreSQL lets an index entry be. Where the policy's `dimensions` leave a dimension out,
   its column of `counts` is null. */

CREATE TABLE IF NOT EXISTS counts (
    key_sha256 bytea PRIMARY KEY,
    kafka_partition integer NOT NULL,
    kafka_offset bigint NOT NULL,
    window_start timestamp NOT NULL,
    window_end timestamp NOT NULL,
    platform text NOT NULL,
    advertiser_id text NOT NULL,
    campaign_id text,
    ad_id text,
    creative_id text,
    landing_page text,
    offer_id text,
    source text,
    medium text,
    conversion_name text NOT NULL,
    currency text NOT NULL,
    views bigint NOT NULL,
    engaged_views bigint NOT NULL,
    clicks bigint NOT NULL,
    conversions bigint NOT NULL,
    value numeric NOT NULL,
    cost numeric NOT NULL,
    revision bigint NOT NULL,
    final boolean NOT NULL
);
CREATE INDEX IF NOT EXISTS counts_window_start ON counts (window_start);

CREATE TABLE IF NOT EXISTS conversions (
    key_sha256 bytea PRIMARY KEY,
    kafka_partition integer NOT NULL,
    kafka_offset bigint NOT NULL,
    advertiser_id text NOT NULL,
    user_id text NOT NULL,
    platform text NOT NULL,
    conversion_name text NOT NULL,
    event_id text NOT NULL,
    event_time timestamp NOT NULL,
    order_id text,
    status text NOT NULL,
    conversions bigint NOT NULL,
    value numeric NOT NULL,
    currency text,
    action_class text NOT NULL,
    intent text NOT NULL,
    outcome text NOT NULL,
    method text NOT NULL,
    policy_version bigint NOT NULL,
    duplicate_of text,
    touch_type text,
    touch_event_id text,
    touch_time timestamp,
    time_to_convert_ms bigint,
    campaign_id text,
    ad_id text,
    creative_id text,
    landing_page text,
    offer_id text,
    source text,
    medium text,
    revision bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS conversions_event_time ON conversions (event_time);

-- Where the copy stands in each partition, written in the transaction that writes the rows; and when it last held all
-- that was there.
CREATE TABLE IF NOT EXISTS copied_to (
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL,
    caught_up_at timestamptz NOT NULL,
    PRIMARY KEY (topic, partition)
);
