/* What BI asks most, over the tables `counts` and `conversions` of the two example consumers. The same text runs in
   DuckDB and in PostgreSQL (psql -f deploy/bi/answers.sql). A title is a line that begins with two dashes.

   - A rate is conversions per 100 clicks of the same platform and dimension, both by their own time: a conversion in
     the window when it happened, a click in its own. For "of Monday's clicks, how many converted" see 9.
   - An action's row carries the clicks of all its platform and dimension. One without any conversion has no action.
   - Amounts of two currencies are never added up. Platforms are never added up either: an order that two platforms
     earned stands under both (see 8).
   - null: the touch did not say, or the policy's `dimensions` leave that dimension out.  */

-- 1. Up to when all windows are final, and what is still open
SELECT max(window_end) FILTER (WHERE final) AS last_final_window_ends,
       min(window_start) FILTER (WHERE NOT final) AS first_open_window_starts,
       count(*) AS count_rows, sum(revision - 1) AS rewritten
FROM counts;

-- 2. Conversions, rate and value by platform
SELECT platform, conversion_name AS action, currency, views, clicks, conversions,
       round(100.0 * conversions / nullif(clicks, 0), 2) AS per_100_clicks,
       round(value, 2) AS value, round(value / nullif(conversions, 0), 2) AS value_each
FROM (SELECT platform, conversion_name, currency, sum(conversions) AS conversions, sum(value) AS value,
             sum(sum(views)) OVER alike AS views, sum(sum(clicks)) OVER alike AS clicks,
             sum(sum(conversions)) OVER alike AS of_all_actions
      FROM counts GROUP BY platform, conversion_name, currency
      WINDOW alike AS (PARTITION BY platform)) AS added_up
WHERE conversions > 0 OR (conversion_name = '' AND of_all_actions = 0)
ORDER BY platform, conversions DESC, action, currency;

-- 3. Conversions, rate and value by campaign
SELECT advertiser_id, platform, campaign_id, conversion_name AS action, currency, views, clicks, conversions,
       round(100.0 * conversions / nullif(clicks, 0), 2) AS per_100_clicks,
       round(value, 2) AS value, round(value / nullif(conversions, 0), 2) AS value_each
FROM (SELECT advertiser_id, platform, campaign_id, conversion_name, currency, sum(conversions) AS conversions, sum(value) AS value,
             sum(sum(views)) OVER alike AS views, sum(sum(clicks)) OVER alike AS clicks,
             sum(sum(conversions)) OVER alike AS of_all_actions
      FROM counts GROUP BY advertiser_id, platform, campaign_id, conversion_name, currency
      WINDOW alike AS (PARTITION BY advertiser_id, platform, campaign_id)) AS added_up
WHERE conversions > 0 OR (conversion_name = '' AND of_all_actions = 0)
ORDER BY conversions DESC, clicks DESC, advertiser_id, platform, campaign_id, action, currency;

-- 4. Conversions, rate and value by creative
SELECT advertiser_id, platform, campaign_id, creative_id, conversion_name AS action, currency, views, clicks, conversions,
       round(100.0 * conversions / nullif(clicks, 0), 2) AS per_100_clicks,
       round(value, 2) AS value, round(value / nullif(conversions, 0), 2) AS value_each
FROM (SELECT advertiser_id, platform, campaign_id, creative_id, conversion_name, currency, sum(conversions) AS conversions, sum(value) AS value,
             sum(sum(views)) OVER alike AS views, sum(sum(clicks)) OVER alike AS clicks,
             sum(sum(conversions)) OVER alike AS of_all_actions
      FROM counts GROUP BY advertiser_id, platform, campaign_id, creative_id, conversion_name, currency
      WINDOW alike AS (PARTITION BY advertiser_id, platform, campaign_id, creative_id)) AS added_up
WHERE conversions > 0 OR (conversion_name = '' AND of_all_actions = 0)
ORDER BY conversions DESC, clicks DESC, advertiser_id, platform, campaign_id, creative_id, action, currency;

-- 5. Conversions, rate and value by landing page
SELECT advertiser_id, platform, landing_page, conversion_name AS action, currency, views, clicks, conversions,
       round(100.0 * conversions / nullif(clicks, 0), 2) AS per_100_clicks,
       round(value, 2) AS value, round(value / nullif(conversions, 0), 2) AS value_each
FROM (SELECT advertiser_id, platform, landing_page, conversion_name, currency, sum(conversions) AS conversions, sum(value) AS value,
             sum(sum(views)) OVER alike AS views, sum(sum(clicks)) OVER alike AS clicks,
             sum(sum(conversions)) OVER alike AS of_all_actions
      FROM counts GROUP BY advertiser_id, platform, landing_page, conversion_name, currency
      WINDOW alike AS (PARTITION BY advertiser_id, platform, landing_page)) AS added_up
WHERE conversions > 0 OR (conversion_name = '' AND of_all_actions = 0)
ORDER BY conversions DESC, clicks DESC, advertiser_id, platform, landing_page, action, currency;

-- 6. Conversions, rate and value by offer
SELECT advertiser_id, platform, offer_id, conversion_name AS action, currency, views, clicks, conversions,
       round(100.0 * conversions / nullif(clicks, 0), 2) AS per_100_clicks,
       round(value, 2) AS value, round(value / nullif(conversions, 0), 2) AS value_each
FROM (SELECT advertiser_id, platform, offer_id, conversion_name, currency, sum(conversions) AS conversions, sum(value) AS value,
             sum(sum(views)) OVER alike AS views, sum(sum(clicks)) OVER alike AS clicks,
             sum(sum(conversions)) OVER alike AS of_all_actions
      FROM counts GROUP BY advertiser_id, platform, offer_id, conversion_name, currency
      WINDOW alike AS (PARTITION BY advertiser_id, platform, offer_id)) AS added_up
WHERE conversions > 0 OR (conversion_name = '' AND of_all_actions = 0)
ORDER BY conversions DESC, clicks DESC, advertiser_id, platform, offer_id, action, currency;

-- 7. Conversions that do not count, and why
SELECT platform, conversion_name AS action, status, count(*) AS conversions, currency, round(sum(value), 2) AS value
FROM conversions WHERE status <> 'counted'
GROUP BY platform, conversion_name, status, currency
ORDER BY platform, action, status, currency;

-- 8. Each conversion once, however many platforms earned it
SELECT conversion_name AS action, currency, count(*) AS conversions, round(sum(value), 2) AS value,
       count(*) FILTER (WHERE platforms > 1) AS earned_by_several_platforms
FROM (SELECT advertiser_id, user_id, conversion_name, event_id, max(currency) AS currency, max(value) AS value,
             count(*) AS platforms
      FROM conversions WHERE status = 'counted'
      GROUP BY advertiser_id, user_id, conversion_name, event_id) AS once
GROUP BY conversion_name, currency
ORDER BY action, currency;

-- 9. Of a day's clicks, how many have converted by now
SELECT platform, day, clicks, coalesce(conversions, 0) AS conversions,
       round(100.0 * coalesce(conversions, 0) / nullif(clicks, 0), 2) AS per_100_clicks
FROM (SELECT platform, CAST(window_start AS date) AS day, sum(clicks) AS clicks FROM counts
      WHERE conversion_name = '' GROUP BY platform, CAST(window_start AS date)) AS clicked
LEFT JOIN (SELECT platform, CAST(touch_time AS date) AS day, count(*) AS conversions FROM conversions
           WHERE status = 'counted' AND touch_type = 'click'
           GROUP BY platform, CAST(touch_time AS date)) AS converted USING (platform, day)
ORDER BY platform, day;

-- 10. How long a counted conversion takes from its touch
SELECT platform, touch_type, count(*) AS conversions,
       round(CAST(percentile_cont(0.5) WITHIN GROUP (ORDER BY time_to_convert_ms) / 60000.0 AS numeric), 1) AS median_minutes,
       round(max(time_to_convert_ms) / 60000.0, 1) AS longest_minutes
FROM conversions WHERE status = 'counted'
GROUP BY platform, touch_type
ORDER BY platform, touch_type;
