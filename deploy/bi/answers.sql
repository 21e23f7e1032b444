/* What BI asks most, over the tables of the two example consumers. The same text runs in DuckDB and in PostgreSQL
   (psql -f deploy/bi/answers.sql). A title is a line that begins with two dashes. 11 and all that follow need the policy
   to follow journeys; else they know of none.

   - A rate is conversions per 100 clicks of the same platform and dimension, both by their own time: a conversion in
     the window when it happened, a click in its own. For "of Monday's clicks, how many converted" see 9.
   - An action's row carries the clicks of all its platform and dimension. One without any conversion has no action.
   - Amounts of two currencies are never added up. Platforms are never added up either: an order that two platforms
     earned stands under both. The truth beside them is of scope `all`, in rows of its own (see 11).
   - A paid order is a row of `journeys` that says which customer it is of: the policy's `journeys.orders` but retracted
     ones. It stands there once, also where no touch has earned it.
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
      FROM counts WHERE scope = 'platform' GROUP BY platform, conversion_name, currency
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
      FROM counts WHERE scope = 'platform' GROUP BY advertiser_id, platform, campaign_id, conversion_name, currency
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
      FROM counts WHERE scope = 'platform' GROUP BY advertiser_id, platform, campaign_id, creative_id, conversion_name, currency
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
      FROM counts WHERE scope = 'platform' GROUP BY advertiser_id, platform, landing_page, conversion_name, currency
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
      FROM counts WHERE scope = 'platform' GROUP BY advertiser_id, platform, offer_id, conversion_name, currency
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

-- 11. What the platforms claim and what there was, by week
SELECT week, advertiser_id, action, currency, coalesce(claimed, 0) AS claimed, each_once,
       round(claimed / nullif(each_once, 0), 2) AS claimed_for_one,
       round(coalesce(value_claimed, 0), 2) AS value_claimed, round(value_once, 2) AS value_once
FROM (SELECT CAST(date_trunc('week', window_start) AS date) AS week, advertiser_id, conversion_name AS action, currency,
             sum(conversions) FILTER (WHERE scope = 'platform') AS claimed,
             sum(conversions) FILTER (WHERE scope = 'all') AS each_once,
             sum(value) FILTER (WHERE scope = 'platform') AS value_claimed,
             sum(value) FILTER (WHERE scope = 'all') AS value_once
      FROM counts WHERE conversion_name <> ''
      GROUP BY CAST(date_trunc('week', window_start) AS date), advertiser_id, conversion_name, currency) AS by_week
WHERE claimed > 0 OR each_once > 0
ORDER BY week, advertiser_id, action, currency;

-- 12. How new customers found us: their first touch before their first paid order
SELECT first_touch ->> 'platform' AS platform, first_touch ->> 'source' AS source,
       first_touch ->> 'campaign_id' AS campaign_id, first_touch ->> 'landing_page' AS landing_page,
       count(*) AS new_customers, currency, round(sum(value), 2) AS value
FROM journeys WHERE customer = 'new'
GROUP BY first_touch ->> 'platform', first_touch ->> 'source', first_touch ->> 'campaign_id',
         first_touch ->> 'landing_page', currency
ORDER BY new_customers DESC, platform, source, campaign_id, landing_page, currency;

-- 13. How long a paid order takes from the first visit, and how much comes before it
SELECT conversion_name AS action, customer, count(*) AS orders, count(first_visit_time) AS after_a_visit,
       round(CAST(percentile_cont(0.5) WITHIN GROUP (ORDER BY time_from_first_visit_ms) / 3600000.0 AS numeric), 2) AS median_hours,
       round(CAST(percentile_cont(0.9) WITHIN GROUP (ORDER BY time_from_first_visit_ms) / 3600000.0 AS numeric), 2) AS hours_of_90_percent,
       round(avg(visits), 1) AS visits, round(avg(views + engaged_views + clicks), 1) AS touches
FROM journeys WHERE customer IS NOT NULL
GROUP BY conversion_name, customer
ORDER BY action, customer;

-- 14. Which pages are seen before a paid order
SELECT page, count(*) AS orders,
       round(100.0 * count(*) / (SELECT count(*) FROM journeys WHERE customer IS NOT NULL), 2) AS per_100_orders
FROM (SELECT DISTINCT advertiser_id, user_id, conversion_name, event_id, page
      FROM journeys, unnest(pages) AS visited(page) WHERE customer IS NOT NULL) AS seen
GROUP BY page
ORDER BY orders DESC, page;

-- 15. What was left behind and taken up again, and what brought the people back
SELECT abandoned_action, returned_by ->> 'platform' AS platform, returned_by ->> 'source' AS source,
       returned_by ->> 'campaign_id' AS campaign_id, count(*) AS orders, currency, round(sum(value), 2) AS value
FROM journeys WHERE abandoned_action IS NOT NULL
GROUP BY abandoned_action, returned_by ->> 'platform', returned_by ->> 'source', returned_by ->> 'campaign_id', currency
ORDER BY orders DESC, abandoned_action, platform, source, campaign_id, currency;

-- 16. What each model credits to a campaign
SELECT advertiser_id, platform, campaign_id, conversion_name AS action, currency, model,
       round(sum(share), 2) AS conversions, round(sum(value), 2) AS value
FROM shares
GROUP BY advertiser_id, platform, campaign_id, conversion_name, currency, model
ORDER BY advertiser_id, action, currency, platform, campaign_id, model;

-- 17. What new and returning customers pay, by the platform and source that earned it; null: no touch did
SELECT credited ->> 'platform' AS platform, credited ->> 'source' AS source, currency,
       count(*) FILTER (WHERE customer = 'new') AS new_orders,
       count(*) FILTER (WHERE customer = 'returning') AS returning_orders,
       round(sum(value) FILTER (WHERE customer = 'new'), 2) AS new_value,
       round(sum(value) FILTER (WHERE customer = 'returning'), 2) AS returning_value
FROM journeys WHERE customer IS NOT NULL
GROUP BY credited ->> 'platform', credited ->> 'source', currency
ORDER BY platform, source, currency;
