/* The tables of postgres_copy.py. Times are UTC. A row's identity is its Kafka key, kept as a hash: a key with a long
   landing page is longer than PostgreSQL lets an index entry be. Where the policy's `dimensions` leave a dimension out,
   its column of `counts` is null. A touch of a journey is jsonb, as onecount says it, its time epoch ms. */

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
    final boolean NOT NULL,
    scope text NOT NULL
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

CREATE TABLE IF NOT EXISTS journeys (
    key_sha256 bytea PRIMARY KEY,
    kafka_partition integer NOT NULL,
    kafka_offset bigint NOT NULL,
    advertiser_id text NOT NULL,
    user_id text NOT NULL,
    conversion_name text NOT NULL,
    event_id text NOT NULL,
    event_time timestamp NOT NULL,
    order_id text,
    scope text NOT NULL,
    status text NOT NULL,
    conversions bigint NOT NULL,
    value numeric NOT NULL,
    currency text,
    action_class text NOT NULL,
    intent text NOT NULL,
    outcome text NOT NULL,
    policy_version bigint NOT NULL,
    credit text NOT NULL,
    credited jsonb,
    time_to_convert_ms bigint,
    counted_by text[] NOT NULL,
    first_touch jsonb,
    touches jsonb NOT NULL,
    views bigint NOT NULL,
    engaged_views bigint NOT NULL,
    clicks bigint NOT NULL,
    visits bigint NOT NULL,
    pages text[] NOT NULL,
    first_visit_time timestamp,
    first_page text,
    first_referrer text,
    time_from_first_touch_ms bigint,
    time_from_first_visit_ms bigint,
    customer text,
    abandoned_action text,
    abandoned_time timestamp,
    returned_by jsonb,
    revision bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS journeys_event_time ON journeys (event_time);

CREATE TABLE IF NOT EXISTS models (
    key_sha256 bytea PRIMARY KEY,
    kafka_partition integer NOT NULL,
    kafka_offset bigint NOT NULL,
    advertiser_id text NOT NULL,
    user_id text NOT NULL,
    conversion_name text NOT NULL,
    event_id text NOT NULL,
    event_time timestamp NOT NULL,
    model text NOT NULL,
    value numeric NOT NULL,
    currency text,
    credits jsonb NOT NULL,
    revision bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS models_event_time ON models (event_time);

/* Only what is missing is changed, so that a start waits for nobody who reads: the column that tables of an older release
   lack, and the view with a row a touch that has a share in a conversion by a model. */
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'counts'::regclass AND attname = 'scope') THEN
        ALTER TABLE counts ADD COLUMN scope text NOT NULL DEFAULT 'platform';
        UPDATE counts SET scope = 'all' WHERE platform = 'all';
    END IF;
    IF to_regclass('shares') IS NULL THEN
        CREATE VIEW shares AS
        SELECT advertiser_id, user_id, conversion_name, event_id, event_time, model, currency,
               CAST(each ->> 'share' AS numeric) AS share, CAST(each ->> 'value' AS numeric) AS value,
               touch ->> 'platform' AS platform, touch ->> 'touch_type' AS touch_type,
               touch ->> 'event_id' AS touch_event_id,
               timestamp '1970-01-01' + CAST(touch ->> 'time' AS bigint) * interval '1 millisecond' AS touch_time,
               touch ->> 'campaign_id' AS campaign_id, touch ->> 'ad_id' AS ad_id,
               touch ->> 'creative_id' AS creative_id, touch ->> 'landing_page' AS landing_page,
               touch ->> 'offer_id' AS offer_id, touch ->> 'source' AS source, touch ->> 'medium' AS medium
        FROM models, jsonb_array_elements(credits) AS credited(each),
             LATERAL (SELECT each -> 'touch' AS touch) AS touched;
    END IF;
END $$;

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
